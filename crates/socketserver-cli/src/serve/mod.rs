//! The life of every server program: bind the endpoints, announce them, serve until a signal or the
//! console ends it.

mod bind;
mod connection_log;
mod options;
mod plan;

use std::iter;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use socketserver::{
    Address, Concurrency, Forking, GroupHandle, Sequential, ServerGroup, ServerHandle, Tls,
};

use crate::cli::{Model, Policy, ServerOptions, UsageError};
use crate::config::Reloader;
use crate::console::Console;
use crate::descriptors::{self, Need};
use crate::endpoint::Endpoint;
use crate::metrics::MetricsServer;
use crate::nonblocking::Stream;
use crate::service_manager::{self, Socket};
use crate::signals::{ShutdownTimeouts, Signals};
use crate::{terminal, tls};
use options::{forking, green, pooled, threading};
use plan::Plan;

pub(crate) use bind::{AnyTransport, Condition, Handlers, Inet, Source, StreamsOnly};
pub(crate) use options::{apply, of_file};

/// Servers that are bound and do not serve yet.
pub(crate) struct BoundServers {
    pub(crate) group: ServerGroup,
    /// The endpoints for clients, with the ports that were bound.
    pub(crate) listening: Vec<Endpoint>,
    pub(crate) addresses: Vec<Address>,
    /// The number of requests that each server serves at once.
    pub(crate) limits: Vec<usize>,
    pub(crate) model: Model,
    pub(crate) patience: ShutdownTimeouts,
    /// The exit status after a drain that cancelled requests.
    cut_status: u8,
    /// True if the program writes its own data to stdout, so that announcements go to stderr.
    pub(crate) stdout_taken: bool,
    /// The TLS setup that all `tls://` endpoints share.
    pub(crate) tls: Option<Tls>,
    /// The reloader, if a configuration file is used.
    pub(crate) reloader: Option<Reloader>,
    /// The server of `/metrics`, `/livez` and `/readyz`.
    watching: Option<MetricsServer>,
    signals: Signals,
}

/// Binds all endpoints, or none.
pub(crate) fn bind(
    options: &ServerOptions,
    handlers: &impl Handlers,
) -> anyhow::Result<BoundServers> {
    // Runs before any descriptor is opened that could be mistaken for a passed socket.
    let mut inherited = match options.endpoints.iter().any(Endpoint::is_inherited) {
        true => service_manager::inherited().context("cannot start")?,
        false => Vec::new(),
    };
    if options.concurrency == Model::Forking {
        // Without this check the error would appear only after the endpoints are announced.
        Forking::check_system().context("cannot start")?;
    }
    let reloads = options.origin.is_some();
    let signals = Signals::catch(reloads).context("cannot catch signals")?;
    let mut bound = BoundServers {
        group: ServerGroup::new(),
        listening: Vec::new(),
        addresses: Vec::new(),
        limits: Vec::new(),
        model: options.concurrency,
        patience: ShutdownTimeouts {
            lame: options.lame_duck_time,
            drain: options.drain_timeout,
        },
        cut_status: options.cut_status,
        stdout_taken: false,
        tls: tls::of(options)?,
        reloader: None,
        watching: None,
        signals,
    };
    let identity = options.privileges.identity().context("cannot start")?;
    let asked: Vec<_> = options.listening().chain(&options.metrics).collect();
    let plan = Plan::of(&asked)?;
    for (number, endpoint) in options.listening().enumerate() {
        let start = || format!("cannot start {endpoint}");
        let Endpoint::Inherited(name) = endpoint else {
            for source in bound.sources(endpoint, plan.addresses(number)) {
                bound
                    .add_any(options, handlers, source)
                    .map_err(|error| plan.explain(error, number))
                    .with_context(start)?;
            }
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
            "no --listen systemd:NAME takes a socket that was passed on: its clients are not served"
        );
    }
    bound.reloader = options.origin.as_ref().map(|origin| {
        Reloader::new(
            origin,
            bound.handle(),
            bound.listening.clone(),
            bound.tls.clone(),
        )
    });
    if let Some(endpoint) = &options.metrics {
        let condition = handlers.condition();
        let number = asked.len() - 1;
        let at = plan.addresses(number);
        let watching = MetricsServer::bind(endpoint, &at, options, &mut bound, condition)
            .map_err(|error| plan.explain(error, number))
            .with_context(|| format!("cannot start {endpoint} for metrics"))?;
        bound.watching = Some(watching);
    }
    descriptors::provide(need(options, &bound.limits, handlers.descriptors()));
    if let Some(identity) = identity {
        identity.assume().context("cannot start")?;
    }
    Ok(bound)
}

/// The number of requests that can be busy at once; further requests are assumed to wait for
/// clients.
const BUSY: u64 = 1024;

/// The setting of [`socketserver::Pooled::max_idle`], which no option changes.
const IDLE: usize = 10_000;

/// Returns the descriptors that all servers need together.
fn need(options: &ServerOptions, limits: &[usize], besides: u32) -> Need {
    let waiting = match options.at_limit {
        Policy::Queue => u64::from(options.queue_places),
        Policy::Wait | Policy::Reject => 0,
    };
    let idle = match options.concurrency {
        Model::Pooled => IDLE as u64,
        _ => 0,
    };
    let most = options.max_active.map_or(u64::MAX, u64::from);
    let limits = limits.iter().map(|limit| (*limit as u64).min(most));
    let (connections, busy) = limits.fold((0, 0), |(connections, busy), limit| {
        let live = limit.saturating_add(idle).min(most);
        (connections + live + waiting, busy + limit.min(BUSY))
    });
    Need {
        connections,
        besides: busy * u64::from(besides),
    }
}

impl BoundServers {
    /// Returns the sockets of an endpoint: one, or one for each address of its name.
    fn sources<'a>(&self, endpoint: &'a Endpoint, at: Vec<Inet>) -> Vec<Source<'a>> {
        let each = at.into_iter();
        match endpoint {
            Endpoint::Tcp(_) => each.map(Source::Tcp).collect(),
            Endpoint::Udp(_) => each.map(Source::Udp).collect(),
            Endpoint::Tls(_) => (each.zip(iter::repeat(&self.tls)))
                .filter_map(|(at, tls)| Some(Source::Encrypt(at, tls.clone()?)))
                .collect(),
            Endpoint::Http(_) => each.map(|at| Source::Web(at, None)).collect(),
            Endpoint::Https(_) => each.map(|at| Source::Web(at, self.tls.clone())).collect(),
            Endpoint::Unix(path) => vec![Source::Unix(path)],
            Endpoint::Unixgram(path) => vec![Source::Unixgram(path)],
            Endpoint::Inherited(_) => Vec::new(),
        }
    }

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

    /// Returns the handle that stops all servers.
    pub(crate) fn handle(&self) -> GroupHandle {
        self.group.handle()
    }

    /// Adds a condition for `/readyz`, if that page is served.
    pub(crate) fn ready_if(
        &self,
        name: &str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        if let Some(watching) = &self.watching {
            watching.metrics.ready_if(name, check);
        }
    }

    /// Says where clients can connect, and serves until the end; 1 if it was forced, and
    /// `--cut-status` if a drain had to cut.
    pub(crate) fn serve_forever(mut self) -> anyhow::Result<ExitCode> {
        let group = self.handle();
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
            lines.extend(
                watching
                    .endpoints
                    .iter()
                    .map(|it| format!("{it} (metrics)")),
            );
        }
        announce(&lines, self.stdout_taken, self.model);
        service_manager::ready();
        let served = self.group.serve_forever();
        if let Some(watching) = self.watching {
            watching.end();
        }
        terminal::restore();
        served.map_err(|error| anyhow::Error::from(error).context("serving ended"))?;
        let reports = group
            .handles()
            .iter()
            .filter_map(ServerHandle::drain_report);
        let cut: u64 = reports
            .map(|report| report.cancelled + report.refused)
            .sum();
        Ok(if forced.load(Ordering::Relaxed) {
            ExitCode::FAILURE
        } else if cut > 0 {
            ExitCode::from(self.cut_status)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// Serves with only a console beside the servers.
pub(crate) fn serve(options: &ServerOptions, handlers: &impl Handlers) -> anyhow::Result<ExitCode> {
    let mut bound = bind(options, handlers)?;
    Console::new(&bound).attend(&mut bound)?;
    bound.serve_forever()
}

/// Returns an error under the sequential model. The handlers of such programs wait for other things
/// than their clients, and a server that runs them in its own thread could not be stopped.
pub(crate) fn need_another_thread(options: &ServerOptions, what: &str) -> anyhow::Result<()> {
    if options.concurrency == Model::Sequential {
        let why = format!(
            "{what}, and a sequential server can serve no other client at the same time: use --concurrency \
             threading, pooled or green"
        );
        return Err(UsageError(why).into());
    }
    Ok(())
}

/// Returns an error if an endpoint receives datagrams, for programs that need connections.
pub(crate) fn need_connections(options: &ServerOptions) -> anyhow::Result<()> {
    match options
        .endpoints
        .iter()
        .find(|endpoint| endpoint.is_datagram())
    {
        Some(endpoint) => Err(UsageError(format!("{endpoint}: {NO_DATAGRAMS}")).into()),
        None => Ok(()),
    }
}

const NO_DATAGRAMS: &str = "this program needs connections: use tcp://, tls:// or unix://";

/// Returns an error under the forking model, for programs whose clients share the memory of a
/// process.
pub(crate) fn need_one_process(options: &ServerOptions, what: &str) -> anyhow::Result<()> {
    if options.concurrency == Model::Forking {
        let why = format!(
            "{what}, which separate processes cannot do: use another --concurrency than forking"
        );
        return Err(UsageError(why).into());
    }
    Ok(())
}

/// Prints the endpoints to which clients can connect. Never blocks: a full pipe gets the text once
/// it is read. In a process that must not have threads, the pipe gets the part that fits.
fn announce(listening: &[String], stdout_taken: bool, model: Model) {
    let text: String = listening
        .iter()
        .map(|endpoint| format!("listening {endpoint}\n"))
        .collect();
    if terminal::above_prompt(&text) {
        return;
    }
    let stream = if stdout_taken {
        Stream::Stderr
    } else {
        Stream::Stdout
    };
    let taken = stream.put(text.as_bytes());
    if taken == text.len() {
        return;
    }
    let rest = text[taken..].to_owned();
    let write_rest = move || stream.write_all(rest.as_bytes());
    let thread = std::thread::Builder::new().name("announce".into());
    if model == Model::Forking || thread.spawn(write_rest).is_err() {
        // The servers run regardless of this error.
        tracing::warn!(
            "cannot write to the output, which may lack some of: {}",
            listening.join(", ")
        );
    }
}
