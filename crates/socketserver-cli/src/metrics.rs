//! Who tells how the servers fare: a server of its own, over HTTP, which outlives their drain.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use socketserver::metrics::Metrics;
use socketserver::transport::{StreamTransport, Tcp, UnixStream};
use socketserver::{
    Address, Builder, Concurrency, DualStack, Forking, GroupHandle, OverloadPolicy, Server,
    ServerGroup, Threading, Timeouts,
};

use crate::cli::{Model, ServerOptions};
use crate::endpoint::Endpoint;
use crate::serve::{BoundServers, Condition, Inet, of_file};

/// Who asks at once. Collectors are one or two, and probes of readiness another. Whoever else comes
/// waits for a moment, and cannot take more than that from the servers that are watched; a few who
/// are slow do not keep a probe from its answer.
const CLIENTS: usize = 16;
const AT_LIMIT: OverloadPolicy = OverloadPolicy::Queue {
    patience: PATIENCE,
    places: PLACES,
};
const PATIENCE: Duration = Duration::from_secs(2);
const PLACES: usize = 128;

/// Descriptors for probes, when the servers have taken all others.
const RESERVED: usize = 8;

/// What a client is told that is one too many.
const TOO_MANY: &str = "HTTP/1.1 503 Service Unavailable\r\n\
    Content-Type: text/plain; charset=utf-8\r\nContent-Length: 22\r\nCache-Control: no-store\r\n\
    Connection: close\r\n\r\ntoo many ask at once\r\n";

/// An answer has 5 seconds. This is for who connects and says nothing.
const SILENCE: Duration = Duration::from_secs(5);

/// How long answers have that are under way when the servers have ended.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Where metrics can be had: connections only.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint, String> {
    match text.parse() {
        Ok(endpoint @ (Endpoint::Tcp(_) | Endpoint::Unix(_))) => Ok(endpoint),
        Ok(_) => Err("HTTP needs connections: write tcp://HOST:PORT or unix:///path".into()),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) struct MetricsServer {
    /// With the real port; several, if its name has several addresses.
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) metrics: Metrics,
    /// The server, unless it is a companion in the loop of the others.
    own: Placement,
}

enum Placement {
    None,
    BoundServers(ServerGroup),
    Serving(GroupHandle, JoinHandle<()>),
}

impl MetricsServer {
    /// Binds it for servers that are bound already.
    pub(crate) fn bind(
        endpoint: &Endpoint,
        at: &[Inet],
        options: &ServerOptions,
        bound: &mut BoundServers,
        condition: Option<Condition>,
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::new();
        if let Some(check) = condition {
            metrics.ready_if("program", move || check());
        }
        if let Some(tls) = bound.tls.clone() {
            metrics.certificates(move || {
                let dates = tls.dates().into_iter();
                let ends = dates.map(|one| (one.path.display().to_string(), one.not_after));
                ends.collect()
            });
        }
        for (endpoint, server) in bound.listening.iter().zip(bound.handle().handles()) {
            metrics.register(endpoint.to_string(), server);
        }
        let group = &mut bound.group;
        // A forking server must have one thread, and so shares its loop: each request is answered by
        // a child, from its copy of the figures.
        let (endpoints, own) = if bound.model == Model::Forking {
            let model = Forking::new()
                .max_children(CLIENTS)
                .overload_policy(AT_LIMIT);
            let add = Add::Companion(group);
            (
                listen(endpoint, at, options, model, &metrics, add)?,
                Placement::None,
            )
        } else {
            let mut own = ServerGroup::new();
            let model = Threading::new()
                .max_threads(CLIENTS)
                .overload_policy(AT_LIMIT);
            let add = Add::Member(&mut own);
            let endpoints = listen(endpoint, at, options, model, &metrics, add)?;
            (endpoints, Placement::BoundServers(own))
        };
        Ok(Self {
            endpoints,
            metrics,
            own,
        })
    }

    /// Begins to serve, unless the others' loop does.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        self.own = match std::mem::replace(&mut self.own, Placement::None) {
            Placement::BoundServers(mut group) => {
                let handle = group.handle();
                let serve = move || {
                    if let Err(error) = group.serve_forever() {
                        // The servers that are watched go on.
                        tracing::error!(%error, "metrics are not served any more");
                    }
                };
                let thread = thread::Builder::new().name("metrics".into()).spawn(serve)?;
                Placement::Serving(handle, thread)
            }
            other => other,
        };
        Ok(())
    }

    /// The servers have ended.
    pub(crate) fn end(self) {
        if let Placement::Serving(handle, thread) = self.own {
            handle.drain(LAST_ANSWERS);
            // It ends by itself, but for a handler that does not notice that it was cut.
            if handle.wait(Some(LAST_ANSWERS * 2)) {
                let _ = thread.join();
            }
        }
    }
}

/// What a server is put into.
enum Add<'a> {
    Member(&'a mut ServerGroup),
    Companion(&'a mut ServerGroup),
}

fn listen<C: Concurrency>(
    endpoint: &Endpoint,
    at: &[Inet],
    options: &ServerOptions,
    model: C,
    metrics: &Metrics,
    add: Add<'_>,
) -> anyhow::Result<Vec<Endpoint>> {
    let factory = metrics.endpoint();
    // One body for servers of both types.
    macro_rules! add {
        ($server:expr) => {{
            let server = $server;
            let addresses: Vec<_> = server.local_addrs().cloned().collect();
            match add {
                Add::Member(group) => group.add(server),
                Add::Companion(group) => group.add_sidecar(server),
            }
            addresses
        }};
    }
    let addresses = match endpoint {
        Endpoint::Tcp(_) => {
            let stack = at
                .first()
                .map_or_else(DualStack::default, |at| at.dual_stack);
            let builder = builder::<Tcp, C>(model).dual_stack(stack);
            add!(builder.bind_all(at.iter().map(|at| at.address), factory)?)
        }
        Endpoint::Unix(path) => {
            let builder = of_file(builder::<UnixStream, C>(model), options)?;
            add!(builder.bind(path, factory)?)
        }
        _ => unreachable!("refused by the command line"),
    };
    let endpoints: Vec<_> = addresses.iter().map(|at| endpoint.bound_to(at)).collect();
    let is_local = |address: &Address| {
        address
            .as_inet()
            .is_none_or(|address| address.ip().to_canonical().is_loopback())
    };
    for (endpoint, _) in endpoints
        .iter()
        .zip(&addresses)
        .filter(|(_, at)| !is_local(at))
    {
        tracing::warn!(
            "whoever reaches {endpoint} can read the figures of these servers, unencrypted: listen \
             on 127.0.0.1 or unix:///path if that is not meant"
        );
    }
    Ok(endpoints)
}

fn builder<T: StreamTransport, C: Concurrency>(model: C) -> Builder<T, C> {
    let timeouts = Timeouts::default()
        .first_byte(Some(SILENCE))
        .request(Some(SILENCE * 2));
    Server::<T, C>::builder()
        .concurrency(model)
        .timeouts(timeouts)
        .rejection_message(TOO_MANY)
        .reserved_descriptors(RESERVED)
        // Somebody who asks badly, or not at all, is no matter for the log of the servers.
        .handle_error(|info, failure| {
            tracing::debug!(peer = %info.peer(), %failure, "a request for metrics failed");
            Ok(())
        })
}
