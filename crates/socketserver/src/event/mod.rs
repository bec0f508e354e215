//! What happened, as data. The server says it here and nowhere else: counters, `tracing`, metrics
//! and the application's observers only subscribe.

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
use crate::concurrency::CUT;
use crate::server::{DrainReport, RequestInfo, ServerState};
use crate::user_code::{HandlerError, HandlerErrorKind};

/// Something that happened in a server; see [`Builder::on_event`](crate::Builder::on_event).
///
/// A request's events come in this order: `Accepted`, then either `Rejected`, or `Dispatched`,
/// `Started`, perhaps `Failed`, `Closing`, `Ended`. Under a forking server those from `Started` to
/// `Closing` happen in the child, and `Ended` in the parent.
///
/// Where a header of the PROXY protocol is to come first (feature `proxy`), it is read after
/// `Dispatched`. Then `Started` follows, or `Rejected`, or, if the peer went away or was cut, `Ended`.
/// From then on the peer is the client that the header names. What a forked child refuses is told
/// by the child, which knows the client, and by the parent, which counts.
///
/// Nothing is made for an event: it borrows. What one costs with and without observers is measured by
/// `cargo test --release -p socketserver --all-features --lib -- --ignored --nocapture emit_costs`, and what
/// they all cost a connection by `cargo run --release -p bench -- churn --contenders green,green-watched`.
///
/// A drain's events come in this order: `DrainStarted`, `DrainBacklogTaken`, `ListenerClosed` for each
/// address, then `DrainDeadlineReached` and `DrainKilled` if it comes to that, and `DrainEnded`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A connection was accepted or a datagram received (`get_request`).
    Accepted(&'a RequestInfo),
    /// The request was closed without a handler.
    Rejected(&'a RequestInfo, &'a Rejection),
    /// The request was handed to the concurrency model (`process_request`).
    Dispatched(&'a RequestInfo),
    /// Its service begins (`finish_request`).
    Started(&'a RequestInfo),
    /// The handler failed; `handle_error` is called next. A peer that went away is no failure.
    Failed(&'a RequestInfo, &'a HandlerError),
    /// The service is over and the request is about to be closed (`shutdown_request`).
    Closing(&'a RequestInfo),
    /// The request is closed (`close_request`).
    Ended(&'a RequestInfo, &'a RequestSummary),
    /// Accepting pauses because the system has no room. Once per episode: until nothing failed
    /// for ten seconds, further pauses belong to the same one.
    AcceptPaused {
        /// The listening address.
        address: &'a Address,
        /// What the system said: usually `EMFILE`, too many open files.
        error: &'a io::Error,
    },
    /// Clients are refused because the process has no descriptor left for them. Once per episode,
    /// as above.
    OutOfDescriptors {
        /// The listening address.
        address: &'a Address,
        /// What the system said.
        error: &'a io::Error,
    },
    /// Everything that had waited meanwhile has been accepted.
    AcceptResumed {
        /// The listening address.
        address: &'a Address,
        /// How often accepting had failed.
        failures: u32,
    },
    /// A connection failed before it could be accepted. The next one is taken at once.
    AcceptFailed {
        /// The listening address.
        address: &'a Address,
        /// What the system said.
        error: &'a io::Error,
    },
    /// A hook returned an error or panicked. The server goes on.
    HookFailed {
        /// The name of the hook.
        hook: &'static str,
        /// What it did.
        cause: &'a HandlerErrorKind,
    },
    /// A request has kept its thread to itself for too long, and goes on doing so. Told once for
    /// each time, by event-driven servers only.
    Stalled {
        /// Which request, and whose.
        name: &'a str,
        /// For how long at least.
        duration: Duration,
    },
    /// The kernel dropped datagrams, mostly because its buffer for the socket was full: they came
    /// faster than they were taken out of it. Told with the next datagram, once per second at most.
    DatagramsDropped {
        /// The listening address.
        address: &'a Address,
        /// How many since this was last told.
        count: u64,
    },
    /// Requests that use nothing are cut, so that others have their places; see
    /// [`Displacement`](crate::Displacement). Once per episode: until none was cut for ten seconds.
    DisplacementStarted {
        /// What is short: `requests`, `threads`, `descriptors`, `TLS handshakes`, `queue places`.
        limit: &'static str,
        /// How many requests are live.
        live: usize,
    },
    /// No request was cut for that reason for ten seconds.
    DisplacementEnded {
        /// How many were cut in this episode.
        displaced: u64,
        /// How long it lasted.
        lasted: Duration,
    },
    /// The server is in another state; see [`ServerHandle::state`](crate::ServerHandle::state).
    ///
    /// Told by the serving thread, in order, when it gets to it. What it was in between for a moment
    /// only, or while nobody served, is not told.
    StateChanged {
        /// As it was when this was last told.
        from: ServerState,
        /// As it is.
        to: ServerState,
    },
    /// A drain began.
    DrainStarted {
        /// How many requests are being served.
        live: usize,
        /// How long they have.
        timeout: Duration,
    },
    /// What waited in the backlog was taken on; whoever comes from now on is not.
    DrainBacklogTaken {
        /// How many requests that were.
        queued: u64,
        /// How many were closed at once, as the time was over.
        refused: u64,
    },
    /// A drain has closed a listener.
    ListenerClosed {
        /// The address that it was bound to.
        address: &'a Address,
    },
    /// The drain's deadline has passed, and what is left is cut. A sequential server does not tell
    /// it, as its handler notices the deadline by itself, and sooner.
    DrainDeadlineReached {
        /// How many requests that concerns.
        live: usize,
    },
    /// Children that did not notice were killed.
    DrainKilled {
        /// How many requests they were serving.
        live: usize,
    },
    /// A drain ended, and the server is closed.
    DrainEnded(&'a DrainReport),
}

/// Why a request was closed without a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// `verify_request` said no, or failed.
    Verify,
    /// The server is at its limit, and its [policy](crate::OverloadPolicy) is not to let clients wait, or
    /// not for longer.
    AtLimit,
    /// The process is out of descriptors, and the policy is not to let clients wait.
    NoDescriptors,
    /// It waited in the [queue](crate::OverloadPolicy::Queue), and another client that has fewer places
    /// needed its place.
    Displaced,
    /// The drain's deadline passed before the request could be served.
    Draining,
    /// A rule of the server's [`Admission`](crate::Admission) denies the peer's address.
    Denied,
    /// As many requests of this peer are live as its `Admission` allows.
    PeerLimit,
    /// Requests of this peer come faster than its `Admission` allows.
    PeerRate,
    /// The datagram's source port is that of a service, and the server
    /// [refuses these](crate::Builder::reject_low_ports).
    LowPort,
    /// The datagram's source is an address that this process serves datagrams at: the answer would be
    /// the next question.
    OwnAddress,
    /// The datagram's source port is 0, so that it cannot be answered.
    NoPort,
    /// The peer is a [trusted proxy](crate::ProxyProtocol), and did not begin with a header.
    #[cfg(feature = "proxy")]
    ProxyHeader(crate::ProxyHeaderError),
    /// The [TLS](crate::Tls) handshake came to nothing.
    #[cfg(feature = "tls")]
    Tls(crate::TlsHandshakeError),
}

impl Rejection {
    /// Whether the client is told the server's notice. Who is denied is told nothing: it costs
    /// least, and says least. A proxy without a header may pass the notice on to anybody.
    pub(crate) fn is_told(self) -> bool {
        match self {
            Self::Denied | Self::LowPort | Self::OwnAddress | Self::NoPort => false,
            #[cfg(feature = "proxy")]
            Self::ProxyHeader(_) => false,
            // It does not speak the language of the notice.
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
            Self::ProxyHeader(fault) => return write!(f, "no PROXY header: {fault}"),
            #[cfg(feature = "tls")]
            Self::Tls(fault) => return write!(f, "no TLS: {fault}"),
        })
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// The handler returned.
    Completed,
    /// The handler returned an error.
    Failed,
    /// The handler panicked.
    Panicked,
    /// The peer broke the protocol or exceeded a limit on its messages, and was told so (HTTP,
    /// WebSocket).
    ProtocolError,
    /// A wait reached its limit, and the handler passed the error on.
    TimedOut,
    /// The peer reset the connection or closed it under a write.
    Disconnected,
    /// The server cut the connection.
    Cancelled,
    /// The peer did not read what a [`Room`](crate::Room) sent to it, and was cut.
    SlowConsumer,
    /// The server cut the connection, which used nothing, as another client needed its place; see
    /// [`Displacement`](crate::Displacement).
    Displaced,
    /// The child that served it was killed by this signal.
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
            Self::Killed(signal) if *signal == CUT.as_raw() => {
                write!(f, "killed by signal {signal}: cut by the server")
            }
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// The end of a request, in figures.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestSummary {
    /// How it ended.
    pub reason: EndReason,
    /// Bytes received from the peer. Zero where a child process has counted them.
    pub received: u64,
    /// Bytes sent to the peer. Zero where a child process has counted them.
    pub sent: u64,
    /// From accept to close.
    pub elapsed: Duration,
}
