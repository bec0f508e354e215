//! `socketserver`: server programs, and clients to talk to them.
//!
//! This file decides nothing but the exit code: 0 after a stop that was asked for (`--cut-status` if its
//! drain had to cut), 1 when starting
//! or a second signal forced the end; 2 for wrong usage.

#![forbid(unsafe_code)]

mod auth_token;
mod byte_size;
mod cert;
mod cli;
mod command_client;
mod config;
mod connect;
mod console;
mod decode;
mod descriptors;
mod endpoint;
mod escape;
mod framing;
mod inet;
mod init;
#[cfg(test)]
mod limits_page;
mod load;
mod log_rate;
mod logging;
mod metrics;
mod nonblocking;
mod privileges;
mod programs;
mod reopen;
mod serve;
mod service_manager;
mod signals;
mod terminal;
mod tls;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;

use cli::{Command, UsageError};
use config::{Start, StartError};
use nonblocking::Stream;

/// The exit code for wrong usage, which clap also uses.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut start = match config::start(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(start) => start,
        Err(StartError::UsageError(error)) => error.exit(),
        Err(StartError::Config(error)) => return fail(&error.into(), WRONG_USAGE),
    };
    let is_check = match start.cli.command.program() {
        Some(program) => {
            let checked = program.check().and_then(|()| Ok(program.server().check()?));
            if let Err(error) = checked {
                return fail(&error.context("cannot start"), WRONG_USAGE);
            }
            program.server().check_config
        }
        None => false,
    };
    if is_check {
        return match check(&mut start) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, WRONG_USAGE),
        };
    }
    if let Err(error) = logging::init(&start.cli.logging) {
        return fail(&error, 1);
    }
    if start.cli.command.program().is_some() && init::is_needed() {
        match init::supervise() {
            Ok(code) => return code,
            Err(error) => tracing::warn!(
                "as process 1, this process reaps only its own children: {error:#}; start it under \
                 an init, such as that of docker run --init"
            ),
        }
    }
    let outcome = match start.cli.command {
        Command::Upper(args) => programs::upper::run(&args),
        Command::Echo(args) => programs::echo::run(&args),
        Command::Chat(args) => programs::chat::run(&args),
        Command::Collect(args) => programs::collect::run(&args),
        Command::Reply(args) => programs::reply::run(&args),
        Command::Command(args) => programs::command::run(args),
        Command::Http(args) => programs::http::run(&args),
        Command::CommandClient(args) => command_client::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Cert(args) => cert::run(&args),
        Command::Connect(args) => connect::run(&args),
    };
    terminal::restore();
    logging::end();
    outcome.unwrap_or_else(|error| {
        let code = if error.is::<UsageError>() {
            WRONG_USAGE
        } else {
            1
        };
        fail(&error, code)
    })
}

/// Prints the error and its causes on one line. A closed stderr or a full pipe does not delay the
/// exit.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    Stream::Stderr.put(format!("socketserver: {error:#}\n").as_bytes());
    ExitCode::from(code)
}

/// Checks the files and names that a server needs, and prints the resulting configuration.
fn check(start: &mut Start) -> anyhow::Result<()> {
    let program = start
        .cli
        .command
        .program()
        .context("this command is not a server")?;
    for endpoint in program.server().listening() {
        endpoint
            .look_up()
            .with_context(|| format!("cannot listen on {endpoint}"))?;
    }
    program.check_files()?;
    program.server().tls.load()?;
    program.server().privileges.look_up()?;
    let text = start.effective.take().unwrap_or_default().to_toml()?;
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
