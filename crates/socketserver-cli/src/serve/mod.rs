//! What every server program does: bind its endpoints, say so, serve until a signal or the console
//! ends it.

mod bind;
mod build;
mod visitors;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use socketserver::{Address, Concurrency, GroupController, Sequential, ServerGroup, Tls};

use crate::cli::{Model, ServerOptions, Usage};
use crate::config::Reloader;
use crate::console::Console;
use crate::endpoint::Endpoint;
use crate::metrics::Watching;
use crate::service_manager::{self, Socket};
use crate::signals::{Patience, Signals};
use crate::{terminal, tls};
use build::{forking, green, pooled, threading};

pub(crate) use bind::{Any, Condition, Handlers, Source, Streams};
pub(crate) use build::apply;

/// Servers that are bound and do not serve yet.
pub(crate) struct Bound {
    pub(crate) group: ServerGroup,
    /// Where clients find them, with real ports.
    pub(crate) listening: Vec<Endpoint>,
    pub(crate) addresses: Vec<Address>,
    /// How many requests each of them serves at once.
    pub(crate) limits: Vec<usize>,
    pub(crate) model: Model,
    pub(crate) patience: Patience,
    /// Stdout belongs to the program: what is said here goes to stderr.
    pub(crate) stdout_taken: bool,
    /// What tls:// endpoints share.
    tls: Option<Tls>,
    /// If they were started with a configuration.
    pub(crate) reloader: Option<Reloader>,
    /// Who tells how the servers fare.
    watching: Option<Watching>,
    signals: Signals,
}

/// Binds every endpoint, or none.
pub(crate) fn bind(options: &ServerOptions, handlers: &impl Handlers) -> anyhow::Result<Bound> {
    let reloads = options.origin.is_some();
    let signals = Signals::catch(reloads).context("cannot catch signals")?;
    let mut bound = Bound {
        group: ServerGroup::new(),
        listening: Vec::new(),
        addresses: Vec::new(),
        limits: Vec::new(),
        model: options.concurrency,
        patience: Patience {
            lame: options.lame_time,
            drain: options.drain_timeout,
        },
        stdout_taken: false,
        tls: tls::of(options)?,
        reloader: None,
        watching: None,
        signals,
    };
    let identity = options.privileges.identity().context("cannot start")?;
    let mut inherited = match options.endpoints.iter().any(Endpoint::is_inherited) {
        true => service_manager::inherited().context("cannot start")?,
        false => Vec::new(),
    };
    for endpoint in options.listening() {
        let start = || format!("cannot start {endpoint}");
        let Endpoint::Inherited(name) = endpoint else {
            let source = match (endpoint, &bound.tls) {
                (Endpoint::Tls(address), Some(tls)) => Source::Encrypt(address, tls.clone()),
                (Endpoint::Http(address), _) => Source::Web(address, None),
                (Endpoint::Https(address), tls) => Source::Web(address, tls.clone()),
                _ => Source::Bind(endpoint),
            };
            bound
                .add_any(options, handlers, source)
                .with_context(start)?;
            continue;
        };
        let is_meant = |(found, _): &mut (String, Socket)| name.as_ref().is_none_or(|n| n == found);
        let meant: Vec<_> = inherited.extract_if(.., is_meant).collect();
        if meant.is_empty() {
            bail!(
                "cannot start {endpoint}: no such socket was passed on (LISTEN_FDS); start it by a \
                 socket unit, or try it with systemd-socket-activate"
            );
        }
        for (_, socket) in meant {
            let source = Source::Adopt(socket);
            bound
                .add_any(options, handlers, source)
                .with_context(start)?;
        }
    }
    for (name, _) in &inherited {
        tracing::warn!(
            name,
            "a socket was passed on that no --listen systemd:NAME takes: its clients wait in vain"
        );
    }
    bound.reloader = options.origin.as_ref().map(|origin| {
        Reloader::new(
            origin,
            bound.controller(),
            bound.listening.clone(),
            bound.tls.clone(),
        )
    });
    if let Some(endpoint) = &options.metrics {
        let condition = handlers.condition();
        let watching = Watching::bind(endpoint, options.unix_mode, &mut bound, condition)
            .with_context(|| format!("cannot start {endpoint} for metrics"))?;
        bound.watching = Some(watching);
    }
    if let Some(identity) = identity {
        // What was made as root so far is to be the user's.
        let made = options.endpoints.iter().chain(&options.metrics);
        let mut files = made.filter_map(Endpoint::file);
        files
            .try_for_each(|file| identity.own(file))
            .and_then(|()| identity.assume())
            .context("cannot start")?;
    }
    Ok(bound)
}

impl Bound {
    fn add_any(
        &mut self,
        options: &ServerOptions,
        handlers: &impl Handlers,
        source: Source<'_>,
    ) -> anyhow::Result<()> {
        match options.concurrency {
            Model::Sequential => self.add(options, handlers, Sequential, source),
            Model::Threading => self.add(options, handlers, threading(options), source),
            Model::Forking => self.add(options, handlers, forking(options), source),
            Model::Pooled => self.add(options, handlers, pooled(options), source),
            Model::Green => self.add(options, handlers, green(options), source),
        }
    }

    fn add<C: Concurrency>(
        &mut self,
        options: &ServerOptions,
        handlers: &impl Handlers,
        model: C,
        source: Source<'_>,
    ) -> anyhow::Result<()> {
        let (limit, _) = model.limit();
        let kind = source.kind();
        let address = handlers.bind(options, model, source, &mut self.group)?;
        self.listening.push(kind.bound_to(&address));
        self.addresses.push(address);
        self.limits.push(limit);
        Ok(())
    }

    /// The handle that stops all of them.
    pub(crate) fn controller(&self) -> GroupController {
        self.group.controller()
    }

    /// Says where clients can connect, and serves until the end; 1 if it was forced.
    pub(crate) fn serve_forever(mut self) -> anyhow::Result<ExitCode> {
        let forced = self.signals.forced();
        let reloader = self.reloader.take();
        if self.model == Model::Forking {
            self.signals
                .heed_in_loop(&mut self.group, self.patience, reloader)
        } else {
            self.signals
                .heed_in_threads(&self.group, self.patience, self.model, reloader)
        }
        .context("cannot wait for signals")?;
        let mut lines: Vec<_> = self.listening.iter().map(ToString::to_string).collect();
        if let Some(watching) = &mut self.watching {
            watching.start().context("cannot start")?;
            lines.push(format!("{} (metrics)", watching.endpoint));
        }
        announce(&lines, self.stdout_taken);
        service_manager::ready();
        let served = self.group.serve_forever();
        if let Some(watching) = self.watching {
            watching.end();
        }
        terminal::restore();
        served.map_err(|error| anyhow::Error::from_boxed(error.into()).context("serving ended"))?;
        Ok(if forced.load(Ordering::Relaxed) {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// Serves with no more than a console beside it.
pub(crate) fn serve(options: &ServerOptions, handlers: &impl Handlers) -> anyhow::Result<ExitCode> {
    let mut bound = bind(options, handlers)?;
    Console::new(&bound).attend(&mut bound)?;
    bound.serve_forever()
}

/// For programs whose handlers wait for something else than their clients: a server that runs them
/// itself could not be stopped meanwhile.
pub(crate) fn need_another_thread(options: &ServerOptions, what: &str) -> anyhow::Result<()> {
    if options.concurrency == Model::Sequential {
        let why = format!(
            "{what}, and a sequential server can do nothing else meanwhile: use --concurrency \
             threading, pooled or green"
        );
        return Err(Usage(why).into());
    }
    Ok(())
}

/// For programs whose clients connect.
pub(crate) fn need_connections(options: &ServerOptions) -> anyhow::Result<()> {
    match options
        .endpoints
        .iter()
        .find(|endpoint| endpoint.is_datagram())
    {
        Some(endpoint) => Err(Usage(format!("{endpoint}: {NO_DATAGRAMS}")).into()),
        None => Ok(()),
    }
}

const NO_DATAGRAMS: &str = "this program needs connections: use tcp://, tls:// or unix://";

/// For programs whose clients meet in the memory of one process.
pub(crate) fn need_one_process(options: &ServerOptions, what: &str) -> anyhow::Result<()> {
    if options.concurrency == Model::Forking {
        let why = format!(
            "{what}, which processes of their own cannot do: use another --concurrency than forking"
        );
        return Err(Usage(why).into());
    }
    Ok(())
}

/// Tells where a client can connect by now.
fn announce(listening: &[String], stdout_taken: bool) {
    let text: String = listening
        .iter()
        .map(|endpoint| format!("listening {endpoint}\n"))
        .collect();
    if terminal::above_prompt(&text) {
        return;
    }
    let mut out: Box<dyn Write> = if stdout_taken {
        Box::new(io::stderr())
    } else {
        Box::new(io::stdout())
    };
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The servers are up all the same.
        tracing::warn!(%error, "cannot say where it listens");
    }
}
