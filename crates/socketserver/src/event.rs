//! What happened, as data. The server says it here and nowhere else: counters, `tracing` and the
//! observer only subscribe.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::address::Address;
use crate::failure::{Cause, HandlerFailure, contain};
use crate::server::{DrainReport, RequestInfo};

/// Something that happened in a server; see [`Builder::on_event`](crate::Builder::on_event).
///
/// A request's events come in this order: `Accepted`, then either `Refused`, or `Dispatched`,
/// `Started`, perhaps `Failed`, `Closing`, `Ended`. Under a forking server those from `Started` to
/// `Closing` happen in the child, and `Ended` in the parent.
///
/// Where a header of the PROXY protocol is to come first (feature `proxy`), it is read after
/// `Dispatched`. Then `Started` follows, or `Refused`, or, if the peer went away or was cut, `Ended`.
/// From then on the peer is the client that the header names. What a forked child refuses is told
/// by the child, which knows the client, and by the parent, which counts.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A connection was accepted or a datagram received (`get_request`).
    Accepted(&'a RequestInfo),
    /// The request was closed without a handler.
    Refused(&'a RequestInfo, &'a Refusal),
    /// The request was handed to the concurrency model (`process_request`).
    Dispatched(&'a RequestInfo),
    /// Its service begins (`finish_request`).
    Started(&'a RequestInfo),
    /// The handler failed; `handle_error` is called next. A peer that went away is no failure.
    Failed(&'a RequestInfo, &'a HandlerFailure),
    /// The service is over and the request is about to be closed (`shutdown_request`).
    Closing(&'a RequestInfo),
    /// The request is closed (`close_request`).
    Ended(&'a RequestInfo, &'a Ended),
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
        cause: &'a Cause,
    },
    /// A request has kept its thread to itself for too long, and goes on doing so. Told once for
    /// each time, by event-driven servers only.
    Stalled {
        /// Which request, and whose.
        name: &'a str,
        /// For how long at least.
        lasting: Duration,
    },
    /// A drain began.
    DrainStarted {
        /// How many requests are being served.
        live: usize,
        /// How long they have.
        timeout: Duration,
    },
    /// A drain ended, and the server is closed.
    DrainEnded(&'a DrainReport),
}

/// Why a request was closed without a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// `verify_request` said no, or failed.
    Verify,
    /// The server is at its limit, and its [policy](crate::AtLimit) is not to let clients wait, or
    /// not for longer.
    AtLimit,
    /// The process is out of descriptors, and the policy is not to let clients wait.
    NoDescriptors,
    /// The drain's deadline passed before the request could be served.
    Draining,
    /// A rule of the server's [`Admission`](crate::Admission) denies the peer's address.
    Denied,
    /// As many requests of this peer are live as its `Admission` allows.
    PeerLimit,
    /// Requests of this peer come faster than its `Admission` allows.
    PeerRate,
    /// The peer is a [trusted proxy](crate::ProxyProtocol), and did not begin with a header.
    #[cfg(feature = "proxy")]
    ProxyHeader(crate::BadProxyHeader),
}

impl Refusal {
    /// Whether the client is told the server's notice. Who is denied is told nothing: it costs
    /// least, and says least. A proxy without a header may pass the notice on to anybody.
    pub(crate) fn is_told(&self) -> bool {
        match self {
            Self::Denied => false,
            #[cfg(feature = "proxy")]
            Self::ProxyHeader(_) => false,
            _ => true,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verify => "not verified",
            Self::AtLimit => "at the limit",
            Self::NoDescriptors => "out of descriptors",
            Self::Draining => "draining",
            Self::Denied => "denied by a rule",
            Self::PeerLimit => "too many of this peer",
            Self::PeerRate => "too fast from this peer",
            #[cfg(feature = "proxy")]
            Self::ProxyHeader(fault) => return write!(f, "no PROXY header: {fault}"),
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
    /// A wait reached its limit, and the handler passed the error on.
    TimedOut,
    /// The peer reset the connection or closed it under a write.
    PeerGone,
    /// The server cut the connection.
    Cancelled,
    /// The peer did not read what a [`Room`](crate::Room) sent to it, and was cut.
    FellBehind,
    /// The child that served it was killed by this signal.
    Killed(i32),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed => f.write_str("completed"),
            Self::Failed => f.write_str("failed"),
            Self::Panicked => f.write_str("panicked"),
            Self::TimedOut => f.write_str("timed out"),
            Self::PeerGone => f.write_str("peer gone"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::FellBehind => f.write_str("fell behind"),
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// The end of a request, in figures.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Ended {
    /// How it ended.
    pub reason: EndReason,
    /// Bytes received from the peer. Zero where a child process has counted them.
    pub received: u64,
    /// Bytes sent to the peer. Zero where a child process has counted them.
    pub sent: u64,
    /// From accept to close.
    pub elapsed: Duration,
}

/// Totals since the server was made; see [`Controller::counters`](crate::Controller::counters).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Requests accepted, the refused ones among them.
    pub accepted: u64,
    /// Requests closed without a handler.
    pub refused: u64,
    /// Requests that ended, however they did.
    pub ended: u64,
    /// Of those: the handler returned an error.
    pub failed: u64,
    /// Of those: the handler panicked.
    pub panicked: u64,
    /// Of those: a wait reached its limit.
    pub timed_out: u64,
    /// Of those: the peer went away.
    pub peer_gone: u64,
    /// Of those: cut by the server.
    pub cancelled: u64,
    /// Of those: cut because they did not read what a [`Room`](crate::Room) sent to them.
    pub fell_behind: u64,
    /// Of those: served by a child that a signal killed.
    pub killed: u64,
    /// Failed attempts to accept.
    pub accept_errors: u64,
    /// Hooks that returned an error or panicked.
    pub hook_failures: u64,
    /// Bytes received by requests that ended.
    pub bytes_received: u64,
    /// Bytes sent by requests that ended.
    pub bytes_sent: u64,
}

pub(crate) type Observer = Box<dyn Fn(&Event<'_>) + Send + Sync>;

/// Where events go.
#[derive(Default)]
pub(crate) struct Reporter {
    pub(crate) observer: Option<Observer>,
    totals: Totals,
}

impl Reporter {
    pub(crate) fn counters(&self) -> Counters {
        self.totals.read()
    }

    pub(crate) fn accept_failed(&self) {
        Totals::add(&self.totals.accept_errors, 1);
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.totals.count(event);
        // A subscriber is the application's as well: it may panic when its output is gone.
        if contain(|| trace(event)).is_err() {
            Totals::add(&self.totals.hook_failures, 1);
        }
        let Some(observer) = &self.observer else {
            return;
        };
        if let Err(cause) = contain(|| observer(event)) {
            // Not emitted: the observer would be told of its own failure for ever.
            Totals::add(&self.totals.hook_failures, 1);
            let _ = contain(|| tracing::error!(hook = "on_event", %cause, "hook failed"));
        }
    }
}

#[derive(Default)]
struct Totals {
    accepted: AtomicU64,
    refused: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    timed_out: AtomicU64,
    peer_gone: AtomicU64,
    cancelled: AtomicU64,
    fell_behind: AtomicU64,
    killed: AtomicU64,
    accept_errors: AtomicU64,
    hook_failures: AtomicU64,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
}

impl Totals {
    fn add(total: &AtomicU64, amount: u64) {
        total.fetch_add(amount, Ordering::Relaxed);
    }

    fn count(&self, event: &Event<'_>) {
        match event {
            Event::Accepted(_) => Self::add(&self.accepted, 1),
            Event::Refused(..) => Self::add(&self.refused, 1),
            Event::HookFailed { .. } => Self::add(&self.hook_failures, 1),
            Event::Ended(_, end) => {
                Self::add(&self.bytes_received, end.received);
                Self::add(&self.bytes_sent, end.sent);
                match end.reason {
                    EndReason::Completed => {}
                    EndReason::Failed => Self::add(&self.failed, 1),
                    EndReason::Panicked => Self::add(&self.panicked, 1),
                    EndReason::TimedOut => Self::add(&self.timed_out, 1),
                    EndReason::PeerGone => Self::add(&self.peer_gone, 1),
                    EndReason::Cancelled => Self::add(&self.cancelled, 1),
                    EndReason::FellBehind => Self::add(&self.fell_behind, 1),
                    EndReason::Killed(_) => Self::add(&self.killed, 1),
                }
                Self::add(&self.ended, 1);
            }
            _ => {}
        }
    }

    fn read(&self) -> Counters {
        let read = |total: &AtomicU64| total.load(Ordering::Relaxed);
        Counters {
            accepted: read(&self.accepted),
            refused: read(&self.refused),
            ended: read(&self.ended),
            failed: read(&self.failed),
            panicked: read(&self.panicked),
            timed_out: read(&self.timed_out),
            peer_gone: read(&self.peer_gone),
            cancelled: read(&self.cancelled),
            fell_behind: read(&self.fell_behind),
            killed: read(&self.killed),
            accept_errors: read(&self.accept_errors),
            hook_failures: read(&self.hook_failures),
            bytes_received: read(&self.bytes_received),
            bytes_sent: read(&self.bytes_sent),
        }
    }
}

/// Requests are told at debug level, what an operator should know above it.
fn trace(event: &Event<'_>) {
    match event {
        Event::Accepted(r) => tracing::debug!(id = %r.id(), peer = %r.peer(), "accepted"),
        Event::Refused(r, reason) => {
            tracing::debug!(id = %r.id(), peer = %r.peer(), %reason, "refused");
        }
        Event::Dispatched(r) => tracing::trace!(id = %r.id(), "dispatched"),
        Event::Started(r) => tracing::trace!(id = %r.id(), "started"),
        Event::Closing(r) => tracing::trace!(id = %r.id(), "closing"),
        // Told by `handle_error`, which may be replaced.
        Event::Failed(..) => {}
        Event::Ended(r, end) => tracing::debug!(
            id = %r.id(),
            peer = %r.peer(),
            reason = %end.reason,
            received = end.received,
            sent = end.sent,
            elapsed = ?end.elapsed,
            "ended"
        ),
        Event::AcceptPaused { address, error } => tracing::warn!(
            %address,
            %error,
            "accepting pauses: out of resources; clients wait in the backlog"
        ),
        Event::OutOfDescriptors { address, error } => tracing::warn!(
            %address,
            %error,
            "out of descriptors: new clients are refused"
        ),
        Event::AcceptResumed { address, failures } => {
            tracing::debug!(%address, failures, "accepting resumed");
        }
        Event::AcceptFailed { address, error } => {
            tracing::debug!(%address, %error, "a connection failed before it was accepted");
        }
        Event::HookFailed { hook, cause } => tracing::error!(hook, %cause, "hook failed"),
        Event::Stalled { name, lasting } => tracing::warn!(
            name,
            ?lasting,
            "stalled: a handler keeps its thread to itself, and others wait"
        ),
        Event::DrainStarted { live, timeout } => {
            tracing::info!(live, ?timeout, "draining");
        }
        Event::DrainEnded(report) => tracing::info!(
            queued = report.queued,
            finished = report.finished,
            refused = report.refused,
            cut = report.cut,
            abandoned = report.abandoned,
            elapsed = ?report.elapsed,
            "drained"
        ),
    }
}
