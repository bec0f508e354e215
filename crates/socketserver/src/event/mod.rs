//! Events of a server. The counters, `tracing`, the metrics and the application's observers all
//! subscribe to these events, and use no other source.

mod counters;
mod sink;
mod throttle;

use std::fmt;
use std::io;
use std::time::Duration;

pub use counters::Counters;
pub(crate) use sink::EventSink;
pub(crate) use throttle::Throttle;

use crate::address::Address;
use crate::concurrency::CANCEL_SIGNAL;
use crate::server::{DrainReport, RequestInfo, ServerState};
use crate::user_code::{HandlerError, HandlerErrorKind};

/// An event of a server; see [`Builder::on_event`](crate::Builder::on_event).
///
/// The events of a request have this order: `Accepted`, then either `Rejected`, or `Dispatched`,
/// `Started`, `Failed` (if the handler fails), `Closing`, `Ended`. In a forking server, the child
/// emits the events from `Started` to `Closing`, and the parent emits `Ended`.
///
/// If the server expects a PROXY protocol header (feature `proxy`), it reads the header after
/// `Dispatched`. The next event is `Started`, `Rejected`, or, if the peer disconnected or the
/// server cancelled the connection, `Ended`. From this event on, the peer is the client that the
/// header names. A forked child that rejects a connection emits `Rejected` with the client's
/// address; the parent emits `Rejected` as well and counts it.
///
/// Events borrow their data; emitting an event does not allocate. This command measures the cost of
/// an event with and without observers:
/// `cargo test --release -p socketserver --all-features --lib -- --ignored --nocapture emit_costs`.
/// This command measures the cost of all events per connection:
/// `cargo run --release -p bench -- churn --contenders green,green-watched`.
///
/// The events of a drain have this order: `DrainStarted`, `DrainBacklogTaken`, `ListenerClosed` for
/// each address, `DrainDeadlineReached` and `DrainKilled` if the deadline passes, and `DrainEnded`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The server accepted a connection or received a datagram (`get_request`).
    Accepted(&'a RequestInfo),
    /// The server closed the request without a handler.
    Rejected(&'a RequestInfo, &'a Rejection),
    /// The server passed the request to the concurrency model (`process_request`).
    Dispatched(&'a RequestInfo),
    /// The server begins to serve the request (`finish_request`).
    Started(&'a RequestInfo),
    /// The handler failed; `handle_error` is called next. A disconnected peer is not a failure.
    Failed(&'a RequestInfo, &'a HandlerError),
    /// The handler is finished, and the server is about to close the request (`shutdown_request`).
    Closing(&'a RequestInfo),
    /// The server closed the request (`close_request`).
    Ended(&'a RequestInfo, &'a RequestSummary),
    /// The server stops accepting because the system lacks resources. Emitted once per episode:
    /// further pauses belong to the same episode until accepting has not failed for 10 s.
    AcceptPaused {
        /// The listening address.
        address: &'a Address,
        /// The error of the system: usually `EMFILE`, too many open files.
        error: &'a io::Error,
    },
    /// The server rejects clients because the process has no free descriptor. Emitted once per
    /// episode, like `AcceptPaused`.
    OutOfDescriptors {
        /// The listening address.
        address: &'a Address,
        /// The error of the system.
        error: &'a io::Error,
    },
    /// The server accepts again, and has accepted all connections that waited in the backlog.
    AcceptResumed {
        /// The listening address.
        address: &'a Address,
        /// The number of failed attempts.
        failures: u32,
    },
    /// A connection failed before it was accepted. The server accepts the next connection at once.
    AcceptFailed {
        /// The listening address.
        address: &'a Address,
        /// The error of the system.
        error: &'a io::Error,
    },
    /// A hook returned an error or panicked. The server continues.
    HookFailed {
        /// The name of the hook.
        hook: &'static str,
        /// The error or panic of the hook.
        cause: &'a HandlerErrorKind,
    },
    /// A request has occupied its thread for too long, and still does. Emitted once per stall, by
    /// event-driven servers only.
    Stalled {
        /// The id and the peer of the request.
        name: &'a str,
        /// The minimum duration of the stall so far.
        duration: Duration,
    },
    /// The kernel dropped datagrams, usually because the socket's receive buffer was full:
    /// datagrams arrived faster than the server received them. Emitted with the next datagram, at
    /// most once per second.
    DatagramsDropped {
        /// The listening address.
        address: &'a Address,
        /// The number of dropped datagrams since the last event of this kind.
        count: u64,
    },
    /// The server begins to displace connections that do no work, so that waiting clients are
    /// served; see [`Displacement`](crate::Displacement). Emitted once per episode: an episode ends
    /// when no connection was displaced for 10 s.
    DisplacementStarted {
        /// The exhausted resource: `requests`, `threads`, `descriptors`, `TLS handshakes`,
        /// `queue places`.
        limit: &'static str,
        /// The number of active requests.
        live: usize,
    },
    /// The server has displaced no connection for 10 s.
    DisplacementEnded {
        /// The number of connections displaced in this episode.
        displaced: u64,
        /// The duration of the episode.
        lasted: Duration,
    },
    /// The state of the server changed; see [`ServerHandle::state`](crate::ServerHandle::state).
    ///
    /// The serving thread emits these events in order, once it notices a change. Short intermediate
    /// states, and changes while no thread serves, are not reported.
    StateChanged {
        /// The last reported state.
        from: ServerState,
        /// The current state.
        to: ServerState,
    },
    /// A drain began.
    DrainStarted {
        /// The number of active requests.
        live: usize,
        /// The time limit for these requests.
        timeout: Duration,
    },
    /// The drain accepted the connections that waited in the backlog. The server accepts no later
    /// connections.
    DrainBacklogTaken {
        /// The number of these connections.
        queued: u64,
        /// The number of these connections that were closed at once, because the deadline had
        /// passed.
        refused: u64,
    },
    /// The drain closed a listener.
    ListenerClosed {
        /// The address of the listener.
        address: &'a Address,
    },
    /// The drain's deadline passed, and the server cancels the remaining requests. A sequential
    /// server does not emit this event, because its handler notices the deadline first.
    DrainDeadlineReached {
        /// The number of remaining requests.
        live: usize,
    },
    /// The server killed the children that did not end in time.
    DrainKilled {
        /// The number of requests that these children served.
        live: usize,
    },
    /// The drain ended, and the server is closed.
    DrainEnded(&'a DrainReport),
}

/// The reason why a request was closed without a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// `verify_request` rejected the request or failed.
    Verify,
    /// The server is at its limit. Its [policy](crate::OverloadPolicy) rejects further clients, or
    /// the client has waited for the maximum time.
    AtLimit,
    /// The process has no free descriptor, and the policy does not let clients wait.
    NoDescriptors,
    /// The request waited in the [queue](crate::OverloadPolicy::Queue) and lost its slot to a
    /// client with fewer queued requests.
    Displaced,
    /// The drain's deadline passed before the request was served.
    Draining,
    /// A rule of the server's [`Admission`](crate::Admission) denies the peer's address.
    Denied,
    /// The peer has as many active requests as the `Admission` allows.
    PeerLimit,
    /// The peer's requests arrive faster than the `Admission` allows.
    PeerRate,
    /// The datagram's source port is below 1024, and the server [rejects such
    /// ports](crate::Builder::reject_low_ports).
    LowPort,
    /// The datagram's source is an address at which this process itself serves datagrams. A reply
    /// would arrive as the next request.
    OwnAddress,
    /// The datagram's source port is 0, so the server cannot reply.
    NoPort,
    /// The peer is a [trusted proxy](crate::ProxyProtocol), but its connection has no valid PROXY
    /// header.
    #[cfg(feature = "proxy")]
    ProxyHeader(crate::ProxyHeaderError),
    /// The [TLS](crate::Tls) handshake failed.
    #[cfg(feature = "tls")]
    Tls(crate::TlsHandshakeError),
}

impl Rejection {
    /// Returns true if the server sends its rejection message to the client. A denied client gets
    /// no message: this costs least and reveals least. A proxy without a header may pass the
    /// message on to any client.
    pub(crate) fn is_told(self) -> bool {
        match self {
            Self::Denied | Self::LowPort | Self::OwnAddress | Self::NoPort => false,
            #[cfg(feature = "proxy")]
            Self::ProxyHeader(_) => false,
            // The client expects TLS records and not plain text.
            #[cfg(feature = "tls")]
            Self::Tls(_) => false,
            _ => true,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verify => "not verified",
            Self::AtLimit => "at the limit",
            Self::NoDescriptors => "out of descriptors",
            Self::Displaced => "displaced",
            Self::Draining => "draining",
            Self::Denied => "denied by a rule",
            Self::PeerLimit => "too many of this peer",
            Self::PeerRate => "too fast from this peer",
            Self::LowPort => "source port below 1024",
            Self::OwnAddress => "from an address of this server",
            Self::NoPort => "from port 0",
            #[cfg(feature = "proxy")]
            Self::ProxyHeader(error) => return write!(f, "no PROXY header: {error}"),
            #[cfg(feature = "tls")]
            Self::Tls(error) => return write!(f, "no TLS: {error}"),
        })
    }
}

/// The reason why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// The handler returned.
    Completed,
    /// The handler returned an error.
    Failed,
    /// The handler panicked.
    Panicked,
    /// The peer broke the protocol or exceeded a limit on its messages, and the server replied with
    /// an error (HTTP, WebSocket).
    ProtocolError,
    /// A read or write timed out, and the handler returned the error.
    TimedOut,
    /// The peer reset the connection, or closed it during a write.
    Disconnected,
    /// The server cancelled the connection.
    Cancelled,
    /// The peer did not read the messages of a [`Room`](crate::Room), and the server disconnected
    /// it.
    SlowConsumer,
    /// The server displaced the connection, which did no work, to serve another client; see
    /// [`Displacement`](crate::Displacement).
    Displaced,
    /// A signal with this number killed the child that served the request.
    Killed(i32),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed => f.write_str("completed"),
            Self::Failed => f.write_str("failed"),
            Self::Panicked => f.write_str("panicked"),
            Self::ProtocolError => f.write_str("protocol error"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Disconnected => f.write_str("disconnected"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::SlowConsumer => f.write_str("slow consumer"),
            Self::Displaced => f.write_str("displaced"),
            // Only the server sends this one.
            Self::Killed(signal) if *signal == CANCEL_SIGNAL.as_raw() => {
                write!(f, "killed by signal {signal}: cut by the server")
            }
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// A summary of an ended request.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestSummary {
    /// The reason why the request ended.
    pub reason: EndReason,
    /// Bytes received from the peer. Zero if a child process served the request.
    pub received: u64,
    /// Bytes sent to the peer. Zero if a child process served the request.
    pub sent: u64,
    /// The time from accept to close.
    pub elapsed: Duration,
}
