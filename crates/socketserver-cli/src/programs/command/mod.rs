//! `command`: runs what a client sends in a shell, and returns what that has written.
//!
//! Here is what a person can choose. The conversation with a client is in `session.rs`, and a reply
//! in `reply.rs`; whether and how long a command may run is in `rules.rs`, and whose turn it is in
//! `turns.rs`, and for forked children in `places.rs`; one command is run by `shell.rs`, what it has started is found by `descendants.rs`,
//! and what it has written is kept by `output.rs`. `hangup.rs` is for forked children.

mod cancel_signal;
mod output;
mod places;
mod policy;
mod process_tree;
mod reply;
mod session;
mod shell;
mod slots;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use socketserver::Forking;

use crate::auth_token::Token;
use crate::byte_size::Size;
use crate::cli::{Model, Program, ServerOptions, TimeoutArg, UsageError, limit};
use crate::console::Console;
use crate::endpoint::Endpoint;
use crate::serve::{BoundServers, StreamsOnly, bind, need_connections};
use policy::Rules;
use session::Session;
use slots::CommandSlots;

/// Run what clients send in a shell, and send back what it writes
///
/// WHOEVER CAN CONNECT CAN RUN ANY COMMAND AS YOU: on 127.0.0.1 and at unix://@abstract every user
/// of this machine, at unix:///path only those whom its permissions admit. Other addresses need
/// --auth-token-file. Nothing is encrypted.
///
/// A command is run by `/bin/sh -c`, in a process group of its own, with its input from /dev/null.
/// The reply is what it has written to stdout, or to stderr if that is nothing: four bytes with the
/// length of the header (the little end first), the header `{"dataBodyLength": N}`, and N bytes. If
/// the command has failed, the header has "exitStatus" or "signal" as well.
///
/// The reply is sent when the shell has exited; what it has left running is killed then, unless that
/// runs in a group of its own (timeout, a shell with job control) or a session of its own (setsid).
/// A client that closes, or only half-closes, gives up its command. That is killed with everything
/// in its group, and with its descendants in other groups of the session.
///
/// Under the green model 32 connections are served at once, those of all endpoints together.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where a command ends
    #[arg(long, value_enum, default_value_t)]
    framing: Framing,

    /// How long a command may run before it is killed ("none" for any time)
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = limit)]
    time_limit: TimeoutArg,

    /// How much a command may write, to stdout and stderr together, before it is killed
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    output_limit: Size,

    /// How many commands run at once, those of all connections together
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_commands: u32,

    /// How long a command waits while as many run as may; then the client is told that the server is
    /// busy ("none" for any time)
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = limit)]
    wait_limit: TimeoutArg,

    /// The secret that clients have to send first: the first line of a file that only you can read
    #[arg(long, value_name = "FILE")]
    auth_token_file: Option<PathBuf>,

    #[command(flatten)]
    server: ServerOptions,
}

/// Where a command ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Framing {
    /// Where one read of the server ends
    #[default]
    Chunks,
    /// At the end of the line
    Lines,
}

/// A longer command is refused.
pub(crate) const LONGEST: usize = 64 << 10;

/// Each connection needs one of these threads.
const GREEN: usize = socketserver::greenroom::MAX_BLOCKING_THREADS;

impl Program for Options {
    fn server(&mut self) -> &mut ServerOptions {
        &mut self.server
    }

    fn check(&self) -> anyhow::Result<()> {
        need_connections(&self.server)?;
        green_share(&self.server).map(drop)
    }

    fn check_files(&self) -> anyhow::Result<()> {
        match &self.auth_token_file {
            Some(path) => Token::load(path).map(drop),
            None => self.server.endpoints.iter().try_for_each(|endpoint| {
                let addresses = endpoint.look_up()?;
                addresses
                    .iter()
                    .try_for_each(|address| refuse_stranger(&self.server, endpoint, Some(*address)))
            }),
        }
    }
}

/// What a command that runs has open here: a copy of its client's socket, its two pipes, its pidfd, two
/// files for long output, and two for its start.
const DESCRIPTORS: u32 = 8;

pub(crate) fn run(mut options: Options) -> anyhow::Result<ExitCode> {
    let watched = Forking::check_system();
    watched
        .context("cannot start: under every model, the end of a command is noticed by its pidfd")?;
    let token = options.auth_token_file.as_deref().map(Token::load);
    let token = token.transpose().context("cannot start")?;
    if let Some(share) = green_share(&options.server)? {
        options.server.workers.get_or_insert(share);
    }
    let forks = options.server.concurrency == Model::Forking;
    let turns = CommandSlots::new(options.max_commands, forks).context("cannot start")?;
    let rules = Arc::new(Rules {
        framing: options.framing,
        time: options.time_limit.0,
        wait: options.wait_limit.0,
        output: options.output_limit,
        max_commands: options.max_commands,
        token,
        forks,
        turns: turns.clone(),
    });
    let is_protected = rules.token.is_some();
    let factory = move || Session::new(rules.clone());
    let mut bound = bind(
        &options.server,
        &StreamsOnly::new(factory).descriptors(DESCRIPTORS),
    )?;
    // As the user who serves.
    if let Err(error) = output::check_directory() {
        tracing::warn!(
            "commands whose output is longer than 1 MiB will be killed: {error}; set TMPDIR"
        );
    }
    if !is_protected {
        refuse_strangers(&bound, &options.server).context("refusing to start")?;
        ensure!(
            options.server.proxy_from.is_empty(),
            "refusing to start: whoever reaches the proxy could run commands here: give \
             --auth-token-file FILE, or leave --proxy-from out"
        );
    }
    let mut console = Console::new(&bound);
    if bound.model != Model::Forking {
        // Forked children count for themselves.
        console = console.with_note(move || turns.told());
    }
    console.attend(&mut bound)?;
    bound.serve_forever()
}

/// Without a token, only this machine may be able to connect, or who has a certificate.
fn refuse_strangers(bound: &BoundServers, server: &ServerOptions) -> anyhow::Result<()> {
    for (endpoint, address) in bound.listening.iter().zip(&bound.addresses) {
        refuse_stranger(server, endpoint, address.as_inet())?;
    }
    Ok(())
}

fn refuse_stranger(
    server: &ServerOptions,
    endpoint: &Endpoint,
    address: Option<SocketAddr>,
) -> anyhow::Result<()> {
    if matches!(endpoint, Endpoint::Tls(_)) && server.tls.knows_clients() {
        return Ok(());
    }
    let is_local = address.is_none_or(|address| address.ip().to_canonical().is_loopback());
    ensure!(
        is_local,
        "whoever reaches {endpoint} could run commands here: listen on 127.0.0.1 or \
         unix:///path, or give --auth-token-file FILE, or --tls-client-ca FILE for a tls:// endpoint"
    );
    Ok(())
}

/// How many connections each endpoint of a green server can serve at once.
fn green_share(server: &ServerOptions) -> anyhow::Result<Option<u32>> {
    if server.concurrency != Model::Green {
        return Ok(None);
    }
    // A name is an endpoint for each of its addresses.
    let addresses = |endpoint: &Endpoint| endpoint.look_up().map_or(1, |found| found.len().max(1));
    let endpoints: usize = server.endpoints.iter().map(addresses).sum();
    let share = u32::try_from((GREEN / endpoints.max(1)).max(1))?;
    if server.workers.is_some_and(|workers| workers > share) {
        let why = format!(
            "the green model has {GREEN} threads for commands: --workers must be at most {share} \
             for each of {endpoints} endpoints; or take another model"
        );
        return Err(UsageError(why).into());
    }
    Ok(Some(share))
}
