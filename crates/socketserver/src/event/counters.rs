//! Counters of events. Counting an event costs one atomic addition per counter.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::{EndReason, Event, Rejection};

/// Totals since the server was created; see
/// [`ServerHandle::counters`](crate::ServerHandle::counters).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Requests accepted, including rejected requests.
    pub accepted: u64,
    /// Requests rejected, that is, closed without a handler.
    pub refused: u64,
    /// Requests rejected because `verify_request` rejected them or failed.
    pub not_verified: u64,
    /// Requests rejected because the server was at its limit.
    pub at_limit: u64,
    /// Requests rejected because the process had no free descriptor.
    pub no_descriptors: u64,
    /// Requests rejected because they lost their slot in the queue to other clients.
    pub displaced_in_queue: u64,
    /// Requests rejected because the deadline of a drain had passed.
    pub draining: u64,
    /// Requests rejected by a rule of the [`Admission`](crate::Admission).
    pub denied: u64,
    /// Requests rejected because their peer had as many active requests as the `Admission` allows.
    pub peer_limit: u64,
    /// Requests rejected because their peer exceeded the rate that the `Admission` allows.
    pub peer_rate: u64,
    /// Datagrams rejected because the server [rejects their source
    /// ports](crate::Builder::reject_low_ports).
    pub low_port: u64,
    /// Datagrams rejected because their source is an address at which this process itself serves
    /// datagrams.
    pub own_address: u64,
    /// Datagrams rejected because their source port is 0.
    pub no_port: u64,
    /// Connections rejected because a trusted proxy sent no valid header (feature `proxy`).
    pub proxy_header: u64,
    /// Connections rejected because the TLS handshake failed (feature `tls`).
    pub tls: u64,
    /// Requests that ended, for any reason.
    pub ended: u64,
    /// Requests that ended because the handler returned.
    pub completed: u64,
    /// Requests that ended because the handler returned an error.
    pub failed: u64,
    /// Requests that ended because the handler panicked.
    pub panicked: u64,
    /// Requests that ended because the peer broke the protocol; the server replied with an error.
    pub protocol_error: u64,
    /// Requests that ended because a read or write timed out.
    pub timed_out: u64,
    /// Requests that ended because the peer disconnected.
    pub disconnected: u64,
    /// Requests that the server cancelled.
    pub cancelled: u64,
    /// Requests that the server cancelled because the peer did not read the messages of a
    /// [`Room`](crate::Room).
    pub slow_consumer: u64,
    /// Requests that the server cancelled because they did no work and other clients waited; see
    /// [`Displacement`](crate::Displacement).
    pub displaced: u64,
    /// Requests that ended because a signal killed their child process.
    pub killed: u64,
    /// Failed attempts to accept.
    pub accept_errors: u64,
    /// Hooks that returned an error or panicked.
    pub hook_failures: u64,
    /// Bytes received by requests that ended.
    pub bytes_received: u64,
    /// Bytes sent by requests that ended.
    pub bytes_sent: u64,
    /// Datagrams that were longer than [`max_packet_size`](crate::Builder::max_packet_size) and
    /// were truncated.
    pub truncated: u64,
    /// Datagrams that the kernel dropped, because the socket's receive buffer was full or the
    /// checksum was wrong. The kernel reports dropped datagrams with the next received datagram.
    /// For an adopted socket, the count includes earlier drops.
    pub dropped_by_kernel: u64,
    /// Replies that were not sent, because they would have exceeded
    /// [`max_amplification`](crate::Builder::max_amplification). Replies of child processes are not
    /// counted.
    pub amplification_refused: u64,
    /// Drains that began: 0 or 1, because a drain closes the server.
    pub drains: u64,
    errnos: [u64; ERRNOS.len() + 1],
    hooks: [u64; HOOKS.len() + 1],
}

impl Counters {
    /// Returns the rejected requests by reason. Each reason has its name in the metrics.
    pub fn rejections(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("verify", self.not_verified),
            ("at_limit", self.at_limit),
            ("no_descriptors", self.no_descriptors),
            ("displaced", self.displaced_in_queue),
            ("draining", self.draining),
            ("denied", self.denied),
            ("peer_limit", self.peer_limit),
            ("peer_rate", self.peer_rate),
            ("low_port", self.low_port),
            ("own_address", self.own_address),
            ("no_port", self.no_port),
            ("proxy_header", self.proxy_header),
            ("tls", self.tls),
        ]
        .into_iter()
    }

    /// Returns the ended requests by reason. Each reason has its name in the metrics.
    pub fn ends(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("completed", self.completed),
            ("failed", self.failed),
            ("panicked", self.panicked),
            ("protocol_error", self.protocol_error),
            ("timed_out", self.timed_out),
            ("disconnected", self.disconnected),
            ("cancelled", self.cancelled),
            ("slow_consumer", self.slow_consumer),
            ("displaced", self.displaced),
            ("killed", self.killed),
        ]
        .into_iter()
    }

    /// Returns the failed attempts to accept by the name of the error. Errors without a known name
    /// are counted as `other`.
    ///
    /// `EAGAIN` means that no thread or process could be started for the request. An empty backlog
    /// is not an error.
    pub fn accept_errors_by_errno(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let names = ERRNOS.into_iter().map(|(_, name)| name);
        names.chain(["other"]).zip(self.errnos)
    }

    /// Returns the failed hooks by name. `on_event` and `tracing` are subscribers to events.
    /// `finish` and `drop` are the last steps of a handler that failed before.
    pub fn hook_failures_by_hook(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        HOOKS.into_iter().chain(["other"]).zip(self.hooks)
    }
}

/// Errors that `accept(2)`, `recvmsg(2)` and `clone(2)` return. The list is bounded, because each
/// error is a time series in the metrics.
const ERRNOS: [(Errno, &str); 22] = [
    (Errno::AGAIN, "EAGAIN"),
    (Errno::CONNABORTED, "ECONNABORTED"),
    (Errno::CONNREFUSED, "ECONNREFUSED"),
    (Errno::CONNRESET, "ECONNRESET"),
    (Errno::HOSTDOWN, "EHOSTDOWN"),
    (Errno::HOSTUNREACH, "EHOSTUNREACH"),
    (Errno::INTR, "EINTR"),
    (Errno::MFILE, "EMFILE"),
    (Errno::MSGSIZE, "EMSGSIZE"),
    (Errno::NETDOWN, "ENETDOWN"),
    (Errno::NETUNREACH, "ENETUNREACH"),
    (Errno::NFILE, "ENFILE"),
    (Errno::NOBUFS, "ENOBUFS"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::NONET, "ENONET"),
    (Errno::NOPROTOOPT, "ENOPROTOOPT"),
    (Errno::NOSR, "ENOSR"),
    (Errno::NOTSOCK, "ENOTSOCK"),
    (Errno::OPNOTSUPP, "EOPNOTSUPP"),
    (Errno::PERM, "EPERM"),
    (Errno::PROTO, "EPROTO"),
    (Errno::TIMEDOUT, "ETIMEDOUT"),
];

const HOOKS: [&str; 9] = [
    "verify_request",
    "handle_error",
    "handle_timeout",
    "service_actions",
    "watch",
    "finish",
    "drop",
    "on_event",
    "tracing",
];

#[derive(Default)]
pub(super) struct Totals {
    accepted: AtomicU64,
    refused: AtomicU64,
    not_verified: AtomicU64,
    at_limit: AtomicU64,
    no_descriptors: AtomicU64,
    displaced_in_queue: AtomicU64,
    draining: AtomicU64,
    denied: AtomicU64,
    peer_limit: AtomicU64,
    peer_rate: AtomicU64,
    low_port: AtomicU64,
    own_address: AtomicU64,
    no_port: AtomicU64,
    proxy_header: AtomicU64,
    tls: AtomicU64,
    ended: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    protocol_error: AtomicU64,
    timed_out: AtomicU64,
    disconnected: AtomicU64,
    cancelled: AtomicU64,
    slow_consumer: AtomicU64,
    displaced: AtomicU64,
    killed: AtomicU64,
    accept_errors: AtomicU64,
    hook_failures: AtomicU64,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    truncated: AtomicU64,
    dropped_by_kernel: AtomicU64,
    amplification_refused: AtomicU64,
    drains: AtomicU64,
    errnos: [AtomicU64; ERRNOS.len() + 1],
    hooks: [AtomicU64; HOOKS.len() + 1],
}

impl Totals {
    pub(super) fn count(&self, event: &Event<'_>) {
        match event {
            Event::Accepted(_) => add(&self.accepted, 1),
            Event::Rejected(_, reason) => {
                add(&self.refused, 1);
                add(self.rejection(reason), 1);
            }
            Event::HookFailed { hook, .. } => self.hook_failed(hook),
            Event::DrainStarted { .. } => add(&self.drains, 1),
            Event::Ended(_, end) => {
                // `Release` pairs with the `Acquire` in `read`: a reader that sees these bytes also
                // sees that the request has ended, and does not count the bytes of an active
                // request again.
                self.bytes_received
                    .fetch_add(end.received, Ordering::Release);
                self.bytes_sent.fetch_add(end.sent, Ordering::Release);
                add(self.end(end.reason), 1);
                add(&self.ended, 1);
            }
            _ => {}
        }
    }

    pub(super) fn accept_failed(&self, error: &io::Error) {
        let code = error.raw_os_error();
        let known = ERRNOS
            .iter()
            .position(|(errno, _)| Some(errno.raw_os_error()) == code);
        add(&self.errnos[known.unwrap_or(ERRNOS.len())], 1);
        add(&self.accept_errors, 1);
    }

    pub(super) fn truncated(&self) {
        add(&self.truncated, 1);
    }

    pub(super) fn dropped_by_kernel(&self, datagrams: u64) {
        add(&self.dropped_by_kernel, datagrams);
    }

    pub(super) fn amplification_refused(&self) {
        add(&self.amplification_refused, 1);
    }

    pub(super) fn hook_failed(&self, hook: &str) {
        let known = HOOKS.iter().position(|name| *name == hook);
        add(&self.hooks[known.unwrap_or(HOOKS.len())], 1);
        add(&self.hook_failures, 1);
    }

    fn rejection(&self, reason: &Rejection) -> &AtomicU64 {
        match reason {
            Rejection::Verify => &self.not_verified,
            Rejection::AtLimit => &self.at_limit,
            Rejection::NoDescriptors => &self.no_descriptors,
            Rejection::Displaced => &self.displaced_in_queue,
            Rejection::Draining => &self.draining,
            Rejection::Denied => &self.denied,
            Rejection::PeerLimit => &self.peer_limit,
            Rejection::PeerRate => &self.peer_rate,
            Rejection::LowPort => &self.low_port,
            Rejection::OwnAddress => &self.own_address,
            Rejection::NoPort => &self.no_port,
            #[cfg(feature = "proxy")]
            Rejection::ProxyHeader(_) => &self.proxy_header,
            #[cfg(feature = "tls")]
            Rejection::Tls(_) => &self.tls,
        }
    }

    fn end(&self, reason: EndReason) -> &AtomicU64 {
        match reason {
            EndReason::Completed => &self.completed,
            EndReason::Failed => &self.failed,
            EndReason::Panicked => &self.panicked,
            EndReason::ProtocolError => &self.protocol_error,
            EndReason::TimedOut => &self.timed_out,
            EndReason::Disconnected => &self.disconnected,
            EndReason::Cancelled => &self.cancelled,
            EndReason::SlowConsumer => &self.slow_consumer,
            EndReason::Displaced => &self.displaced,
            EndReason::Killed(_) => &self.killed,
        }
    }

    pub(super) fn read(&self) -> Counters {
        let read = |total: &AtomicU64| total.load(Ordering::Acquire);
        Counters {
            // The order matters: every ended request was accepted before. Reading `accepted` last
            // ensures that `ended` never exceeds `accepted`.
            bytes_received: read(&self.bytes_received),
            bytes_sent: read(&self.bytes_sent),
            ended: read(&self.ended),
            completed: read(&self.completed),
            failed: read(&self.failed),
            panicked: read(&self.panicked),
            protocol_error: read(&self.protocol_error),
            timed_out: read(&self.timed_out),
            disconnected: read(&self.disconnected),
            cancelled: read(&self.cancelled),
            slow_consumer: read(&self.slow_consumer),
            displaced: read(&self.displaced),
            killed: read(&self.killed),
            refused: read(&self.refused),
            not_verified: read(&self.not_verified),
            at_limit: read(&self.at_limit),
            no_descriptors: read(&self.no_descriptors),
            displaced_in_queue: read(&self.displaced_in_queue),
            draining: read(&self.draining),
            denied: read(&self.denied),
            peer_limit: read(&self.peer_limit),
            peer_rate: read(&self.peer_rate),
            low_port: read(&self.low_port),
            own_address: read(&self.own_address),
            no_port: read(&self.no_port),
            proxy_header: read(&self.proxy_header),
            tls: read(&self.tls),
            accepted: read(&self.accepted),
            accept_errors: read(&self.accept_errors),
            hook_failures: read(&self.hook_failures),
            truncated: read(&self.truncated),
            dropped_by_kernel: read(&self.dropped_by_kernel),
            amplification_refused: read(&self.amplification_refused),
            drains: read(&self.drains),
            errnos: std::array::from_fn(|index| read(&self.errnos[index])),
            hooks: std::array::from_fn(|index| read(&self.hooks[index])),
        }
    }
}

fn add(total: &AtomicU64, amount: u64) {
    total.fetch_add(amount, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_name_and_in_total() {
        let totals = Totals::default();
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        totals.accept_failed(&error(Errno::MFILE));
        totals.accept_failed(&error(Errno::MFILE));
        totals.accept_failed(&error(Errno::DOM));
        totals.accept_failed(&io::Error::other("no errno"));
        let counters = totals.read();
        let counted: Vec<_> = counters
            .accept_errors_by_errno()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(counted, [("EMFILE", 2), ("other", 2)]);
        assert_eq!(counters.accept_errors, 4);
    }

    #[test]
    fn hooks_are_counted_by_name_and_in_total() {
        let totals = Totals::default();
        totals.hook_failed("watch");
        totals.hook_failed("unknown");
        let counters = totals.read();
        let counted: Vec<_> = counters
            .hook_failures_by_hook()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(counted, [("watch", 1), ("other", 1)]);
        assert_eq!(counters.hook_failures, 2);
    }
}
