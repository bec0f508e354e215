//! `command`: runs the commands of clients in a shell, and sends their output back.
//!
//! This file has the command line options and their checks. The other files are:
//!
//! - `session.rs`: the protocol with one client; `reply.rs`: one reply frame.
//! - `policy.rs`: the limits of a command; `slots.rs`: the limit of concurrent commands;
//!   `places.rs`: its implementation for forked children.
//! - `shell.rs`: runs one command; `process_tree.rs`: finds and kills its descendants;
//!   `output.rs`: stores its output.
//! - `cancel_signal.rs`: handles the signal that cancels a forked child.

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
use crate::descriptors;
use crate::endpoint::Endpoint;
use crate::inet;
use crate::serve::{BoundServers, StreamsOnly, bind, need_connections};
use policy::Rules;
use session::Session;
use slots::CommandSlots;

/// Run the commands of clients in a shell, and send their output back
///
/// EVERY CLIENT THAT CAN CONNECT CAN RUN ANY COMMAND AS YOU. On 127.0.0.1 and at unix://@abstract,
/// every user of this machine can connect. At unix:///path, the permissions of the path decide.
/// Other addresses need --auth-token-file. Nothing is encrypted.
///
/// The server runs a command with `/bin/sh -c`, in its own process group, with stdin from
/// /dev/null. The reply contains the command's stdout, or its stderr if stdout is empty. It
/// consists of four bytes with the length of the header (little-endian), the header
/// `{"dataBodyLength": N}`, and N bytes. If the command fails, the header also has "exitStatus" or
/// "signal".
///
/// The server sends the reply when the shell has exited, and kills the processes that the shell has
/// left running. Processes in their own group (timeout, a shell with job control) or in their own
/// session (setsid) continue to run. If the client closes or half-closes the connection, the server
/// kills the command, all processes in its group, and its descendants in other groups of the
/// session.
///
/// The green model serves 32 connections at once, over all endpoints together.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The end of a command
    #[arg(long, value_enum, default_value_t)]
    framing: Framing,

    /// Maximum run time of a command; the server then kills it ("none" for no limit)
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = limit)]
    time_limit: TimeoutArg,

    /// Maximum output of a command, stdout and stderr together; the server then kills it
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    output_limit: Size,

    /// Maximum number of concurrent commands, over all connections
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_commands: u32,

    /// Maximum time that a command waits for a free slot; the server then replies that it is busy
    /// ("none" for no limit)
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = limit)]
    wait_limit: TimeoutArg,

    /// The file whose first line is the token that clients have to send first; only you may be able
    /// to read it
    #[arg(long, value_name = "FILE")]
    auth_token_file: Option<PathBuf>,

    #[command(flatten)]
    server: ServerOptions,
}

/// The end of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Framing {
    /// At the end of one read of the server
    #[default]
    Chunks,
    /// At the end of the line
    Lines,
}

/// Maximum length of a command in bytes. The server rejects a longer command.
pub(crate) const LONGEST: usize = 64 << 10;

/// Number of blocking threads under the green model. Each connection needs one of them.
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

/// Descriptors of the server for one running command: a copy of its client's socket, its two
/// pipes, its pidfd, two files for long output, and two for its start.
const DESCRIPTORS: u32 = 8;

/// With more slots than this, a forking server raises its soft limit of descriptors for them.
const MANY_SLOTS: u32 = 256;

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
    if forks && options.max_commands > MANY_SLOTS {
        // Each slot of a forking server is a descriptor that is open before the servers are bound.
        descriptors::provide(descriptors::Need {
            connections: options.max_commands.into(),
            besides: 1024,
        });
    }
    let turns = CommandSlots::new(options.max_commands, forks).with_context(|| {
        format!(
            "cannot start with --max-commands {}: each slot needs a descriptor under forking",
            options.max_commands
        )
    })?;
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
    // `bind` has changed the user by now, so the check runs as the serving user.
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
        // Each forked child has its own counters, which the parent does not see.
        console = console.with_note(move || turns.told());
    }
    console.attend(&mut bound)?;
    bound.serve_forever()
}

/// Returns an error if clients of other machines can connect without a token or a certificate.
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
    ensure!(
        inet::is_local(address),
        "whoever reaches {endpoint} could run commands here: listen on 127.0.0.1 or \
         unix:///path, or give --auth-token-file FILE, or --tls-client-ca FILE for a tls:// endpoint"
    );
    Ok(())
}

/// Returns the number of connections that each endpoint of a green server can serve at once.
fn green_share(server: &ServerOptions) -> anyhow::Result<Option<u32>> {
    if server.concurrency != Model::Green {
        return Ok(None);
    }
    // A host name becomes one endpoint for each of its addresses.
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
