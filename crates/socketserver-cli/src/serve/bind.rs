//! Servers of any transport under any concurrency model, for the handlers of a program.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use socketserver::transport::{Tcp, UnixDatagram, UnixStream};
use socketserver::{
    Address, Concurrency, Connection, Datagram, DualStack, Event, RequestHandler, Server,
    ServerGroup, Tls, Transport,
};

use super::NO_DATAGRAMS;
use super::connection_log::ConnectionLog;
use super::options::{builder, of_file, stream_builder, udp_builder, web_builder};
use crate::cli::ServerOptions;
use crate::endpoint::Endpoint;
use crate::service_manager::Socket;

/// The origin of a server's socket.
pub(crate) enum Source<'a> {
    Tcp(Inet),
    Udp(Inet),
    /// TCP with TLS.
    Encrypt(Inet, Tls),
    /// TCP for browsers, with or without TLS.
    Web(Inet, Option<Tls>),
    Unix(&'a Path),
    Unixgram(&'a Path),
    Adopt(Socket),
}

/// An IP address to bind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inet {
    pub(crate) address: SocketAddr,
    /// The setting for `[::]`: whether it accepts IPv4 clients as well.
    pub(crate) dual_stack: DualStack,
}

impl Source<'_> {
    /// Returns the endpoint as far as it is known before the socket is bound.
    pub(super) fn kind(&self) -> Endpoint {
        match self {
            Self::Tcp(at) => Endpoint::Tcp(at.address.to_string()),
            Self::Udp(at) => Endpoint::Udp(at.address.to_string()),
            Self::Encrypt(at, _) => Endpoint::Tls(at.address.to_string()),
            Self::Web(at, None) => Endpoint::Http(at.address.to_string()),
            Self::Web(at, Some(_)) => Endpoint::Https(at.address.to_string()),
            Self::Unix(path) => Endpoint::Unix((*path).into()),
            Self::Unixgram(path) => Endpoint::Unixgram((*path).into()),
            Self::Adopt(socket) => socket.into(),
        }
    }
}

/// The handlers of a program.
pub(crate) trait Handlers {
    /// Binds one endpoint, or takes over a bound socket, and adds its server to the group.
    fn bind<C: Concurrency>(
        &self,
        options: &ServerOptions,
        model: C,
        source: Source<'_>,
        group: &mut ServerGroup,
    ) -> anyhow::Result<Address>;

    /// Returns a condition for readiness in addition to the state of the servers.
    fn condition(&self) -> Option<Condition> {
        None
    }

    /// Returns the number of descriptors that one request may open besides its connection.
    fn descriptors(&self) -> u32 {
        0
    }
}

/// Handlers from one factory for connections and datagrams.
pub(crate) struct AnyTransport<F>(pub(crate) F);

/// Handlers from one factory for connections only.
pub(crate) struct StreamsOnly<F> {
    factory: F,
    on_drain: Option<Arc<dyn Fn() + Send + Sync>>,
    condition: Option<Condition>,
    descriptors: u32,
}

/// A condition for the readiness of a program; its error gives the reason.
pub(crate) type Condition = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

impl<F> StreamsOnly<F> {
    pub(crate) fn new(factory: F) -> Self {
        Self {
            factory,
            on_drain: None,
            condition: None,
            descriptors: 0,
        }
    }

    /// Makes `/readyz` report "not ready" while `check` fails.
    pub(crate) fn ready_if(
        mut self,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.condition = Some(Arc::new(check));
        self
    }

    /// Sets the number of descriptors that one request may open besides its connection.
    pub(crate) fn descriptors(mut self, each: u32) -> Self {
        self.descriptors = each;
        self
    }

    /// Calls `call` when a drain begins. `call` must not block because it runs in the accept loop.
    pub(crate) fn on_drain(mut self, call: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_drain = Some(Arc::new(call));
        self
    }
}

impl<F, H> Handlers for AnyTransport<F>
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
            Source::Udp(at) => udp_builder(options, model)
                .dual_stack(at.dual_stack)
                .bind(at.address, factory)
                .map(|server| add(group, server)),
            Source::Adopt(Socket::Udp(socket)) => udp_builder(options, model)
                .adopt(socket, factory)
                .map(|server| add(group, server)),
            Source::Unixgram(path) => of_file(builder::<UnixDatagram, C>(options, model), options)?
                .bind(path, factory)
                .map(|server| add(group, server)),
            Source::Adopt(Socket::Unixgram(socket)) => builder::<UnixDatagram, C>(options, model)
                .adopt(socket, factory)
                .map(|server| add(group, server)),
            _ => return StreamsOnly::new(factory).bind(options, model, source, group),
        };
        Ok(server?)
    }
}

impl<F, H> Handlers for StreamsOnly<F>
where
    F: Fn() -> H + Clone + Send + Sync + 'static,
    H: RequestHandler<Connection> + 'static,
{
    fn condition(&self) -> Option<Condition> {
        self.condition.clone()
    }

    fn bind<C: Concurrency>(
        &self,
        options: &ServerOptions,
        model: C,
        source: Source<'_>,
        group: &mut ServerGroup,
    ) -> anyhow::Result<Address> {
        let factory = self.factory.clone();
        let on_drain = self.on_drain.clone();
        let visitors = ConnectionLog::default();
        let on_event = move |event: &Event<'_>| {
            visitors.observe(event);
            if let (Event::DrainStarted { .. }, Some(call)) = (event, &on_drain) {
                call();
            }
        };
        let server = match source {
            Source::Tcp(at) => stream_builder::<Tcp, C>(options, model)
                .on_event(on_event)
                .dual_stack(at.dual_stack)
                .bind(at.address, factory)
                .map(|server| add(group, server)),
            Source::Encrypt(at, tls) => stream_builder::<Tcp, C>(options, model)
                .on_event(on_event)
                .tls(tls)
                .dual_stack(at.dual_stack)
                .bind(at.address, factory)
                .map(|server| add(group, server)),
            Source::Adopt(Socket::Tcp(socket)) => stream_builder::<Tcp, C>(options, model)
                .on_event(on_event)
                .adopt(socket, factory)
                .map(|server| add(group, server)),
            Source::Web(at, tls) => web_builder(options, model, tls)
                .on_event(on_event)
                .dual_stack(at.dual_stack)
                .bind(at.address, factory)
                .map(|server| add(group, server)),
            Source::Unix(path) => {
                of_file(stream_builder::<UnixStream, C>(options, model), options)?
                    .on_event(on_event)
                    .bind(path, factory)
                    .map(|server| add(group, server))
            }
            Source::Adopt(Socket::Unix(socket)) => stream_builder::<UnixStream, C>(options, model)
                .on_event(on_event)
                .adopt(socket, factory)
                .map(|server| add(group, server)),
            Source::Udp(_)
            | Source::Unixgram(_)
            | Source::Adopt(Socket::Udp(_) | Socket::Unixgram(_)) => bail!(NO_DATAGRAMS),
        };
        Ok(server?)
    }

    fn descriptors(&self) -> u32 {
        self.descriptors
    }
}

fn add<T, C>(group: &mut ServerGroup, server: Server<T, C>) -> Address
where
    T: Transport,
    C: Concurrency,
{
    let address = server.local_addr().clone();
    group.add(server);
    address
}
