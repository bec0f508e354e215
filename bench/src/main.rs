//! Measures servers side by side: the CPU time that a server process needs for one request.
//!
//! `cargo run --release -p bench -- echo` (or `churn`, or `udp`) starts each contender in turn, in a
//! process of its own, pinned to one core, and the load to another; rounds are interleaved, so that
//! whatever disturbs the machine disturbs all. It prints tables in Markdown, and draws them with
//! `--svg FILE`. What is compared is a ratio within one run; absolute figures mean little elsewhere.

#![forbid(unsafe_code)]

mod chart;
mod chat;
mod compare;
mod contenders;
mod load;
mod machine;
mod process;
mod report;
mod soak;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare the CPU time of an echo over TCP
    Echo(compare::EchoOptions),
    /// Compare the CPU time of a connection over TCP: connect, one echo, close
    Churn(compare::ChurnOptions),
    /// Compare the CPU time of an echo over UDP, and count what is lost
    Udp(compare::UdpOptions),
    /// Compare the memory of connections that are silent
    Idle(compare::IdleOptions),
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
    match Cli::parse().command {
        Command::Echo(options) => compare::echo(&options),
        Command::Churn(options) => compare::churn(&options),
        Command::Udp(options) => compare::udp(&options),
        Command::Idle(options) => compare::idle(&options),
        Command::Chat(options) => chat::run(&options),
        Command::Frozen(options) => chat::frozen(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Serve(options) => contenders::serve(&options),
        Command::Load(options) => load::run(&options),
    }
}
