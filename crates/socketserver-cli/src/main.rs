//! `socketserver`: servers to talk to, and a client to talk with.
//!
//! This file decides nothing but the exit code: 0 after a stop that was asked for, 1 when starting
//! or serving failed or a second signal forced the end, 2 for wrong usage.

#![forbid(unsafe_code)]

mod cli;
mod command_client;
mod connect;
mod console;
mod endpoint;
mod logging;
mod lossy;
mod messages;
mod metrics;
mod printer;
mod programs;
mod serve;
mod signals;
mod size;
mod terminal;
mod text;
mod token;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init(&cli.logging);
    let outcome = match cli.command {
        Command::Upper(args) => programs::upper::run(&args),
        Command::Echo(args) => programs::echo::run(&args),
        Command::Chat(args) => programs::chat::run(&args),
        Command::Collect(args) => programs::collect::run(&args),
        Command::Reply(args) => programs::reply::run(&args),
        Command::Command(args) => programs::command::run(args),
        Command::CommandClient(args) => command_client::run(&args),
        Command::Connect(args) => connect::run(&args),
    };
    terminal::restore();
    outcome.unwrap_or_else(|error| {
        // One line, whatever the causes are; a closed stderr leaves nobody to tell.
        let _ = writeln!(io::stderr(), "socketserver: {error:#}");
        ExitCode::FAILURE
    })
}
