//! The server of health and statistics over HTTP. It outlives the drain of the servers that it
//! reports on.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use socketserver::metrics::Metrics;
use socketserver::transport::{StreamTransport, Tcp, UnixStream};
use socketserver::{
    Builder, Concurrency, DualStack, Forking, GroupHandle, OverloadPolicy, Server, ServerGroup,
    Threading, Timeouts,
};

use crate::cli::{Model, ServerOptions};
use crate::endpoint::Endpoint;
use crate::inet;
use crate::serve::{BoundServers, Condition, Inet, of_file};

/// The maximum number of clients at once. One or two collectors and some readiness probes are
/// expected. Further clients wait briefly, which limits their load on the servers. A few slow
/// clients do not delay a probe.
const CLIENTS: usize = 16;
const AT_LIMIT: OverloadPolicy = OverloadPolicy::Queue {
    patience: QUEUE_TIMEOUT,
    places: QUEUE_CAPACITY,
};
const QUEUE_TIMEOUT: Duration = Duration::from_secs(2);
const QUEUE_CAPACITY: usize = 128;

/// Descriptors for probes, when the servers have taken all others.
const RESERVED: usize = 8;

/// The response to a client beyond the queue.
const TOO_MANY: &str = "HTTP/1.1 503 Service Unavailable\r\n\
    Content-Type: text/plain; charset=utf-8\r\nContent-Length: 22\r\nCache-Control: no-store\r\n\
    Connection: close\r\n\r\ntoo many ask at once\r\n";

/// The first-byte timeout for clients that send nothing. A response has its own limit of 5 seconds.
const SILENCE: Duration = Duration::from_secs(5);

/// The time for pending responses after the servers have ended.
const FINAL_RESPONSES: Duration = Duration::from_millis(500);

/// Parses an endpoint for metrics, which must use connections.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint, String> {
    match text.parse() {
        Ok(endpoint @ (Endpoint::Tcp(_) | Endpoint::Unix(_))) => Ok(endpoint),
        Ok(_) => Err("HTTP needs connections: write tcp://HOST:PORT or unix:///path".into()),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) struct MetricsServer {
    /// The endpoints with the ports that were bound; several if the name has several addresses.
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) metrics: Metrics,
    /// The server, unless it runs in the accept loop of the other servers.
    own: Placement,
}

enum Placement {
    None,
    Bound(ServerGroup),
    Serving(GroupHandle, JoinHandle<()>),
}

impl MetricsServer {
    /// Binds the metrics server for servers that are already bound.
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
        // A forking server must have one thread, so the metrics server shares its loop. A child
        // answers each request from its copy of the counters.
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
            (endpoints, Placement::Bound(own))
        };
        Ok(Self {
            endpoints,
            metrics,
            own,
        })
    }

    /// Starts to serve, unless the loop of the other servers does so.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        self.own = match std::mem::replace(&mut self.own, Placement::None) {
            Placement::Bound(mut group) => {
                let handle = group.handle();
                let serve = move || {
                    if let Err(error) = group.serve_forever() {
                        // The servers themselves continue.
                        tracing::error!(%error, "the metrics server has ended with an error");
                    }
                };
                let thread = thread::Builder::new().name("metrics".into()).spawn(serve)?;
                Placement::Serving(handle, thread)
            }
            other => other,
        };
        Ok(())
    }

    /// Ends the metrics server once the servers have ended.
    pub(crate) fn end(self) {
        if let Placement::Serving(handle, thread) = self.own {
            handle.drain(FINAL_RESPONSES);
            // The server ends by itself, unless a handler does not notice its cancellation.
            if handle.wait(Some(FINAL_RESPONSES * 2)) {
                let _ = thread.join();
            }
        }
    }
}

/// The group or the loop to which the server is added.
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
    // The macro generates the same code for both server types.
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
    for (endpoint, _) in endpoints
        .iter()
        .zip(&addresses)
        .filter(|(_, at)| !inet::is_local(at.as_inet()))
    {
        tracing::warn!(
            "every client that reaches {endpoint} can read the statistics, and they are not encrypted: \
             listen on 127.0.0.1 or unix:///path to prevent that"
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
        // A bad or silent client of metrics does not belong in the log of the servers.
        .handle_error(|info, failure| {
            tracing::debug!(peer = %info.peer(), %failure, "a request for metrics failed");
            Ok(())
        })
}
