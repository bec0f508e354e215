//! Measures servers side by side: the CPU time that a server process needs for one request.
//!
//! `cargo run --release -p bench -- echo` starts each contender in turn, in a process of its own,
//! pinned to one core, and the load to another; rounds are interleaved, so that whatever disturbs
//! the machine disturbs all. It prints a table in Markdown. What is compared is a ratio within one
//! run; absolute figures mean little elsewhere.

#![forbid(unsafe_code)]

mod contenders;
mod load;
mod measure;
mod soak;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare the CPU time of an echo of 64 bytes over TCP
    Echo(measure::Options),
    /// Compare the memory of connections that are silent
    Idle(measure::IdleOptions),
    /// Let clients of all kinds loose on a server, for long, and look for what is left
    Soak(soak::Options),
    /// Be one of the servers
    Serve {
        #[arg(value_enum)]
        contender: contenders::Contender,
    },
    /// Be the load
    Load(load::Options),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Echo(options) => measure::echo(&options),
        Command::Idle(options) => measure::idle(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Serve { contender } => contenders::serve(contender),
        Command::Load(options) => load::run(&options),
    }
}
