//! What every server program does: bind its endpoints, say so, serve until a signal ends it.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::Context;
use socketserver::transport::{Tcp, Udp, UnixDatagram, UnixStream};
use socketserver::{
    Address, AtLimit, Builder, Concurrency, Connection, Datagram, Event, Forking, Green, Pooled,
    RequestHandler, Sequential, Server, ServerGroup, Threading, Transport,
};

use crate::cli::{Model, Policy, ServerOptions};
use crate::endpoint::Endpoint;
use crate::signals::Signals;

/// Serves every endpoint with the handlers of one factory.
pub(crate) fn serve<F, H>(options: &ServerOptions, factory: F) -> anyhow::Result<ExitCode>
where
    F: Fn() -> H + Clone + Send + Sync + 'static,
    H: RequestHandler<Connection> + RequestHandler<Datagram> + 'static,
{
    let signals = Signals::catch().context("cannot catch signals")?;
    let forced = signals.forced();
    let (mut group, listening) = bind_under(options, factory)?;
    if options.concurrency == Model::Forking {
        signals.drain_from_loop(&mut group, options.drain_timeout)
    } else {
        signals.drain_from_thread(&group, options.drain_timeout)
    }
    .context("cannot wait for signals")?;
    announce(&listening);
    group
        .serve_forever()
        .map_err(|error| anyhow::Error::from_boxed(error.into()).context("serving ended"))?;
    Ok(if forced.load(Ordering::Relaxed) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Binds under the concurrency model that was asked for, with its limits.
fn bind_under<F, H>(
    options: &ServerOptions,
    factory: F,
) -> anyhow::Result<(ServerGroup, Vec<Endpoint>)>
where
    F: Fn() -> H + Clone + Send + Sync + 'static,
    H: RequestHandler<Connection> + RequestHandler<Datagram> + 'static,
{
    let limit = options.workers;
    let policy = match options.at_limit {
        Policy::Wait => AtLimit::Wait,
        Policy::Reject => AtLimit::Reject,
    };
    match options.concurrency {
        Model::Sequential => bind(options, || Sequential, factory),
        Model::Threading => {
            let model = || limited(Threading::new(), limit, Threading::max_threads);
            bind(options, || model().at_limit(policy), factory)
        }
        Model::Forking => {
            let model = || limited(Forking::new(), limit, Forking::max_children);
            bind(options, || model().at_limit(policy), factory)
        }
        Model::Pooled => {
            let model = || limited(Pooled::new(), limit, Pooled::workers);
            bind(options, || model().at_limit(policy), factory)
        }
        Model::Green => {
            let model = || limited(Green::new(), limit, Green::max_requests);
            bind(options, || model().at_limit(policy), factory)
        }
    }
}

/// The model with the limit that was asked for, or else with its own.
fn limited<C>(model: C, limit: Option<u32>, set: impl FnOnce(C, usize) -> C) -> C {
    match limit {
        Some(limit) => set(model, limit as usize),
        None => model,
    }
}

/// Binds every endpoint, or none.
fn bind<C, F, H>(
    options: &ServerOptions,
    model: impl Fn() -> C,
    factory: F,
) -> anyhow::Result<(ServerGroup, Vec<Endpoint>)>
where
    C: Concurrency,
    F: Fn() -> H + Clone + Send + Sync + 'static,
    H: RequestHandler<Connection> + RequestHandler<Datagram> + 'static,
{
    let endpoints = options
        .endpoints
        .iter()
        .map(|text| text.parse())
        .collect::<Result<Vec<Endpoint>, _>>()
        .context("cannot start")?;
    let mut group = ServerGroup::new();
    let mut listening = Vec::new();
    for endpoint in endpoints {
        let (model, factory) = (model(), factory.clone());
        let address = match &endpoint {
            Endpoint::Tcp(address) => builder::<Tcp, C>(options, model)
                .on_event(log_connection)
                .bind(address, factory)
                .map(|server| add(&mut group, server)),
            Endpoint::Udp(address) => builder::<Udp, C>(options, model)
                .bind(address, factory)
                .map(|server| add(&mut group, server)),
            Endpoint::Unix(path) => builder::<UnixStream, C>(options, model)
                .on_event(log_connection)
                .mode(options.unix_mode)
                .bind(path, factory)
                .map(|server| add(&mut group, server)),
            Endpoint::Unixgram(path) => builder::<UnixDatagram, C>(options, model)
                .mode(options.unix_mode)
                .bind(path, factory)
                .map(|server| add(&mut group, server)),
        }
        .with_context(|| format!("cannot start {endpoint}"))?;
        listening.push(endpoint.bound_to(&address));
    }
    Ok((group, listening))
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
    let timeouts = T::default_timeouts()
        .idle(options.idle_timeout.0)
        .request(options.request_timeout.0);
    let timeouts = match options.write_timeout {
        Some(limit) => timeouts.write(limit.0),
        None => timeouts,
    };
    Server::<T, C, ()>::builder()
        .concurrency(model)
        .timeouts(timeouts)
}

/// Says who comes and goes; all else is logged by the library.
fn log_connection(event: &Event<'_>) {
    match event {
        Event::Accepted(r) => {
            tracing::info!(id = %r.id(), peer = %r.peer(), listener = %r.listener(), "connected");
        }
        Event::Refused(r, reason) => {
            let (id, peer, listener) = (r.id(), r.peer(), r.listener());
            tracing::info!(%id, %peer, %listener, %reason, "refused");
        }
        Event::Ended(r, end) => {
            let (id, peer, listener, reason) = (r.id(), r.peer(), r.listener(), end.reason);
            tracing::info!(%id, %peer, %listener, %reason, "disconnected");
        }
        _ => {}
    }
}

/// Tells, on stdout, where a client can connect by now.
fn announce(listening: &[Endpoint]) {
    let mut stdout = io::stdout().lock();
    let told = listening
        .iter()
        .try_for_each(|endpoint| writeln!(stdout, "listening {endpoint}"))
        .and_then(|()| stdout.flush());
    if let Err(error) = told {
        // The servers are up all the same.
        tracing::warn!(%error, "cannot write to stdout");
    }
}
