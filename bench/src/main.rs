//! Measures servers side by side: the CPU time that a server process needs for one request, its
//! memory, how late its answers are, how long it takes to stop.
//!
//! `cargo run --release -p bench -- all --out bench` asks every question, and `echo`, `churn`, `udp`,
//! `http`, `latency`, `growth`, `idle` and `stop` ask one each. Each contender is started in turn, in a
//! process of its own, pinned to one core, and the load on another; rounds are interleaved, so that
//! whatever disturbs the machine disturbs all. What is compared is a ratio within one run; absolute
//! figures mean little elsewhere. The README has the method.

#![deny(unsafe_code)]

mod all;
mod chart;
mod chat;
mod contenders;
mod load;
mod machine;
mod process;
mod progress;
mod questions;
mod report;
mod soak;
mod usage;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask every question, and write tables and pictures
    All(all::Options),
    /// Compare the CPU time of an echo over TCP or Unix streams
    Echo(questions::EchoOptions),
    /// Compare the CPU time of a connection over TCP: connect, one echo, close
    Churn(questions::ChurnOptions),
    /// Compare the CPU time of an echo over UDP, and count what is lost
    Udp(questions::UdpOptions),
    /// Compare the CPU time of a file over HTTP, and how many go out in a second
    Http(questions::Http),
    /// Compare how late answers are when messages come at a fixed rate
    Latency(questions::Latency),
    /// Compare the CPU time of an echo as open connections grow
    Growth(questions::Growth),
    /// Compare the memory of connections that are silent
    Idle(questions::Idle),
    /// Compare how long it takes to stop
    Stop(questions::Stop),
    /// Fill a chat room, stop one client, and see how long words take to the others
    Chat(chat::Options),
    /// Be the client that is stopped
    Frozen(chat::FrozenOptions),
    /// Let clients of all kinds loose on a server, for long, and look for what is left
    Soak(soak::Options),
    /// Be one of the servers
    Serve(contenders::Options),
    /// Be the load
    Load(load::Options),
}

fn main() -> anyhow::Result<()> {
    use questions::{Cost, ask};
    let command = Cli::parse().command;
    machine::raise_descriptor_limit()?;
    match command {
        Command::All(options) => all::run(&options),
        Command::Echo(options) => ask(&Cost::from(&options), &options.picture),
        Command::Churn(options) => ask(&Cost::from(&options), &options.picture),
        Command::Udp(options) => ask(&Cost::from(&options), &options.picture),
        Command::Http(question) => ask(&question, &question.picture),
        Command::Latency(question) => ask(&question, &question.picture),
        Command::Growth(question) => ask(&question, &question.picture),
        Command::Idle(question) => ask(&question, &question.picture),
        Command::Stop(question) => ask(&question, &question.picture),
        Command::Chat(options) => chat::run(&options),
        Command::Frozen(options) => chat::frozen(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Serve(options) => contenders::serve(&options),
        Command::Load(options) => load::run(&options),
    }
}
