//! Servers of any transport under any model, for the handlers of a program.

use std::sync::Arc;

use anyhow::bail;
use socketserver::transport::{Tcp, UnixDatagram, UnixStream};
use socketserver::{
    Address, Concurrency, Connection, Datagram, Event, RequestHandler, Server, ServerGroup, Tls,
    Transport,
};

use super::NO_DATAGRAMS;
use super::build::{builder, stream_builder, udp_builder, web_builder};
use super::visitors::Visitors;
use crate::cli::ServerOptions;
use crate::endpoint::Endpoint;
use crate::service_manager::Socket;

/// Where a server's socket comes from.
pub(crate) enum Source<'a> {
    Bind(&'a Endpoint),
    /// TCP at this address, encrypted.
    Encrypt(&'a String, Tls),
    /// The same for browsers, encrypted or not.
    Web(&'a String, Option<Tls>),
    Adopt(Socket),
}

impl Source<'_> {
    /// Its endpoint as far as it is known before it is bound.
    pub(super) fn kind(&self) -> Endpoint {
        match self {
            Self::Bind(endpoint) => Endpoint::clone(endpoint),
            Self::Encrypt(address, _) => Endpoint::Tls(address.to_string()),
            Self::Web(address, None) => Endpoint::Http(address.to_string()),
            Self::Web(address, Some(_)) => Endpoint::Https(address.to_string()),
            Self::Adopt(socket) => socket.into(),
        }
    }
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

    /// What has to hold for the program to be ready, beside its servers.
    fn condition(&self) -> Option<Condition> {
        None
    }
}

/// Handlers of one factory for connections and datagrams alike.
pub(crate) struct Any<F>(pub(crate) F);

/// Handlers of one factory for connections.
pub(crate) struct Streams<F> {
    factory: F,
    on_drain: Option<Arc<dyn Fn() + Send + Sync>>,
    condition: Option<Condition>,
}

/// What has to hold for a program to be ready: an error says why it is not.
pub(crate) type Condition = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

impl<F> Streams<F> {
    pub(crate) fn new(factory: F) -> Self {
        Self {
            factory,
            on_drain: None,
            condition: None,
        }
    }

    /// Has `/readyz` answer that it is not ready while `check` fails.
    pub(crate) fn ready_if(
        mut self,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.condition = Some(Arc::new(check));
        self
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
        let visitors = Visitors::default();
        let on_event = move |event: &Event<'_>| {
            visitors.observe(event);
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
            Source::Web(address, tls) => web_builder(options, model, tls)
                .on_event(on_event)
                .bind(address, factory)
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
