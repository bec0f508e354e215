//! What every server program does: bind its endpoints, say so, serve until a signal or the console
//! ends it.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use socketserver::transport::{StreamTransport, Tcp, Udp, UnixDatagram, UnixStream};
use socketserver::{
    Address, Admission, AtLimit, Builder, Concurrency, Connection, Controller, Datagram, Event,
    Forking, Green, GroupController, Pooled, ProxyProtocol, RequestHandler, Sequential, Server,
    ServerGroup, Threading, Timeouts, Tls, Transport,
};

use crate::cli::{Model, Policy, Proxy, ServerOptions, Usage};
use crate::config::Reloader;
use crate::console::Console;
use crate::endpoint::Endpoint;
use crate::metrics::Watching;
use crate::service_manager::{self, Socket};
use crate::signals::Signals;
use crate::{terminal, tls};

/// Servers that are bound and do not serve yet.
pub(crate) struct Bound {
    pub(crate) group: ServerGroup,
    /// Where clients find them, with real ports.
    pub(crate) listening: Vec<Endpoint>,
    pub(crate) addresses: Vec<Address>,
    /// How many requests each of them serves at once.
    pub(crate) limits: Vec<usize>,
    pub(crate) model: Model,
    pub(crate) drain_timeout: Duration,
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
        drain_timeout: options.drain_timeout,
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
    for endpoint in &options.endpoints {
        let start = || format!("cannot start {endpoint}");
        let Endpoint::Inherited(name) = endpoint else {
            let source = match (endpoint, &bound.tls) {
                (Endpoint::Tls(address), Some(tls)) => Source::Encrypt(address, tls.clone()),
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
        let watching = Watching::bind(endpoint, options.unix_mode, &mut bound)
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

/// Where a server's socket comes from.
pub(crate) enum Source<'a> {
    Bind(&'a Endpoint),
    /// TCP at this address, encrypted.
    Encrypt(&'a String, Tls),
    Adopt(Socket),
}

impl Source<'_> {
    /// Its endpoint as far as it is known before it is bound.
    fn kind(&self) -> Endpoint {
        match self {
            Self::Bind(endpoint) => Endpoint::clone(endpoint),
            Self::Encrypt(address, _) => Endpoint::Tls(address.to_string()),
            Self::Adopt(socket) => socket.into(),
        }
    }
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
                .heed_in_loop(&mut self.group, self.drain_timeout, reloader)
        } else {
            self.signals
                .heed_in_threads(&self.group, self.drain_timeout, self.model, reloader)
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

/// What a program makes handlers for.
pub(crate) trait Handlers {
    /// Binds one endpoint, or takes over a socket that is bound, and puts its server into the group.
    fn bind<C: Concurrency>(
        &self,
        options: &ServerOptions,
        model: C,
        source: Source<'_>,
        group: &mut ServerGroup,
    ) -> anyhow::Result<Address>;
}

/// Handlers of one factory for connections and datagrams alike.
pub(crate) struct Any<F>(pub(crate) F);

/// Handlers of one factory for connections.
pub(crate) struct Streams<F> {
    factory: F,
    on_drain: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl<F> Streams<F> {
    pub(crate) fn new(factory: F) -> Self {
        Self {
            factory,
            on_drain: None,
        }
    }

    /// Has `call` called when a drain begins. It must not wait: it runs in the serving loop.
    pub(crate) fn on_drain(mut self, call: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_drain = Some(Arc::new(call));
        self
    }
}

impl<F, H> Handlers for Any<F>
where
    F: Fn() -> H + Clone + Send + Sync + 'static,
    H: RequestHandler<Connection> + RequestHandler<Datagram> + 'static,
{
    fn bind<C: Concurrency>(
        &self,
        options: &ServerOptions,
        model: C,
        source: Source<'_>,
        group: &mut ServerGroup,
    ) -> anyhow::Result<Address> {
        let factory = self.0.clone();
        let server = match source {
            Source::Bind(Endpoint::Udp(address)) => udp_builder(options, model)
                .bind(address, factory)
                .map(|server| add(group, server)),
            Source::Adopt(Socket::Udp(socket)) => udp_builder(options, model)
                .adopt(socket, factory)
                .map(|server| add(group, server)),
            Source::Bind(Endpoint::Unixgram(path)) => builder::<UnixDatagram, C>(options, model)
                .mode(options.unix_mode)
                .bind(path, factory)
                .map(|server| add(group, server)),
            Source::Adopt(Socket::Unixgram(socket)) => builder::<UnixDatagram, C>(options, model)
                .adopt(socket, factory)
                .map(|server| add(group, server)),
            _ => return Streams::new(factory).bind(options, model, source, group),
        };
        Ok(server?)
    }
}

impl<F, H> Handlers for Streams<F>
where
    F: Fn() -> H + Clone + Send + Sync + 'static,
    H: RequestHandler<Connection> + 'static,
{
    fn bind<C: Concurrency>(
        &self,
        options: &ServerOptions,
        model: C,
        source: Source<'_>,
        group: &mut ServerGroup,
    ) -> anyhow::Result<Address> {
        let factory = self.factory.clone();
        let on_drain = self.on_drain.clone();
        let on_event = move |event: &Event<'_>| {
            log_connection(event);
            if let (Event::DrainStarted { .. }, Some(call)) = (event, &on_drain) {
                call();
            }
        };
        let server = match source {
            Source::Bind(Endpoint::Tcp(address)) => stream_builder::<Tcp, C>(options, model)
                .on_event(on_event)
                .bind(address, factory)
                .map(|server| add(group, server)),
            Source::Encrypt(address, tls) => stream_builder::<Tcp, C>(options, model)
                .on_event(on_event)
                .tls(tls)
                .bind(address, factory)
                .map(|server| add(group, server)),
            Source::Adopt(Socket::Tcp(socket)) => stream_builder::<Tcp, C>(options, model)
                .on_event(on_event)
                .adopt(socket, factory)
                .map(|server| add(group, server)),
            Source::Bind(Endpoint::Unix(path)) => stream_builder::<UnixStream, C>(options, model)
                .on_event(on_event)
                .mode(options.unix_mode)
                .bind(path, factory)
                .map(|server| add(group, server)),
            Source::Adopt(Socket::Unix(socket)) => stream_builder::<UnixStream, C>(options, model)
                .on_event(on_event)
                .adopt(socket, factory)
                .map(|server| add(group, server)),
            _ => bail!(NO_DATAGRAMS),
        };
        Ok(server?)
    }
}

fn threading(options: &ServerOptions) -> Threading {
    let model = Threading::new().at_limit(policy(options));
    limited(options, model, Threading::max_threads)
}

fn forking(options: &ServerOptions) -> Forking {
    let model = Forking::new().at_limit(policy(options));
    limited(options, model, Forking::max_children)
}

fn pooled(options: &ServerOptions) -> Pooled {
    let model = Pooled::new().at_limit(policy(options));
    limited(options, model, Pooled::workers)
}

fn green(options: &ServerOptions) -> Green {
    let model = Green::new().at_limit(policy(options));
    limited(options, model, Green::max_requests)
}

fn limited<M>(options: &ServerOptions, model: M, limit: impl FnOnce(M, usize) -> M) -> M {
    match options.workers {
        Some(n) => limit(model, n as usize),
        None => model,
    }
}

fn policy(options: &ServerOptions) -> AtLimit {
    match options.at_limit {
        Policy::Wait => AtLimit::Wait,
        Policy::Reject => AtLimit::Reject,
        Policy::Queue => AtLimit::Queue {
            patience: options.queue_time,
            places: options.queue_places as usize,
        },
    }
}

fn add<T, C, F, H>(group: &mut ServerGroup, server: Server<T, C, F>) -> Address
where
    T: Transport,
    C: Concurrency,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<T::Request> + 'static,
{
    let address = server.local_addr().clone();
    group.add(server);
    address
}

fn builder<T: Transport, C: Concurrency>(options: &ServerOptions, model: C) -> Builder<T, C> {
    let builder = Server::<T, C, ()>::builder();
    let builder = match service_manager::watchdog() {
        // By the loop that accepts: if it does not turn, nobody is served any more.
        Some(interval) => builder.service_actions(interval, || {
            service_manager::alive();
            Ok(())
        }),
        None => builder,
    };
    builder
        .concurrency(model)
        .timeouts(timeouts::<T>(options))
        .admission(admission(options))
}

/// Has a server that is running go by other rules and limits.
pub(crate) fn apply(
    options: &ServerOptions,
    controller: &Controller,
    endpoint: &Endpoint,
) -> io::Result<()> {
    controller.set_timeouts(match endpoint {
        Endpoint::Tcp(_) | Endpoint::Tls(_) => timeouts::<Tcp>(options),
        Endpoint::Udp(_) => timeouts::<Udp>(options),
        Endpoint::Unix(_) => timeouts::<UnixStream>(options),
        Endpoint::Unixgram(_) => timeouts::<UnixDatagram>(options),
        Endpoint::Inherited(_) => unreachable!("it is known by now what was inherited"),
    })?;
    controller.set_admission(admission(options));
    Ok(())
}

fn timeouts<T: Transport>(options: &ServerOptions) -> Timeouts {
    let timeouts = T::default_timeouts()
        .first_byte(options.first_byte_timeout.0)
        .idle(options.idle_timeout.0)
        .receive_rate(options.min_receive_rate.0)
        .send_rate(options.min_send_rate.0)
        .request(options.request_timeout.0);
    match options.write_timeout {
        Some(limit) => timeouts.write(limit.0),
        None => timeouts,
    }
}

fn udp_builder<C: Concurrency>(options: &ServerOptions, model: C) -> Builder<Udp, C> {
    let builder = builder(options, model).max_amplification(options.max_amplification);
    if options.refuse_low_ports {
        builder.refuse_low_ports()
    } else {
        builder
    }
}

fn stream_builder<T: StreamTransport, C: Concurrency>(
    options: &ServerOptions,
    model: C,
) -> Builder<T, C> {
    let mut builder = builder::<T, C>(options, model);
    if let Some(notice) = &options.refusal_notice {
        builder = builder.refusal_notice(format!("{notice}\n"));
    }
    if !options.proxy_from.is_empty() {
        builder = builder.proxy_protocol(proxies(options));
    }
    builder
}

fn proxies(options: &ServerOptions) -> ProxyProtocol {
    let proxies = ProxyProtocol::new().timeout(options.proxy_timeout);
    let each = options.proxy_from.iter();
    each.fold(proxies, |proxies, proxy| match proxy {
        Proxy::At(network) => proxies.trust(*network),
        Proxy::Unix => proxies.trust_unix(),
    })
}

fn admission(options: &ServerOptions) -> Admission {
    let denied = options.deny.iter();
    let admission = denied.fold(Admission::new(), |all, network| all.deny(*network));
    let allowed = options.allow.iter();
    let mut admission = allowed.fold(admission, |all, network| all.allow(*network));
    if let Some(max) = options.max_live {
        admission = admission.max_live(max as usize);
    }
    if let Some(max) = options.max_per_peer {
        admission = admission.max_per_peer(max);
    }
    if let Some(rate) = options.rate {
        admission = admission.rate(rate);
    }
    if let Some(rate) = options.rate_per_peer {
        admission = admission.rate_per_peer(rate);
    }
    admission
}

/// Says who comes and goes; all else is logged by the library.
fn log_connection(event: &Event<'_>) {
    match event {
        Event::Accepted(r) => {
            tracing::info!(id = %r.id(), peer = %r.peer(), listener = %r.listener(), "connected");
        }
        Event::Started(r) => {
            if let Some(proxy) = r.proxy() {
                tracing::info!(id = %r.id(), peer = %r.peer(), %proxy, "forwarded");
            }
        }
        Event::Refused(r, reason) => {
            tracing::info!(id = %r.id(), peer = %r.peer(), listener = %r.listener(), %reason, "refused");
        }
        Event::Ended(r, end) => {
            let (id, peer, listener, reason) = (r.id(), r.peer(), r.listener(), end.reason);
            tracing::info!(%id, %peer, %listener, %reason, "disconnected");
        }
        _ => {}
    }
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
