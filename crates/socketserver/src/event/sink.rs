//! The receiver of all events. Passes each event to the counters, to `tracing` and to the
//! observers.

use std::io;
#[cfg(feature = "metrics")]
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;

use super::counters::Totals;
use super::{Counters, Event};
#[cfg(feature = "metrics")]
use crate::metrics::Histogram;
use crate::server::ServerState;
use crate::user_code::catch_panic;

pub(crate) type Observer = Box<dyn Fn(&Event<'_>) + Send + Sync>;

#[derive(Default)]
pub(crate) struct EventSink {
    observers: Vec<Observer>,
    totals: Totals,
    /// Durations of requests. Recorded after the first call of `durations`.
    #[cfg(feature = "metrics")]
    durations: OnceLock<Histogram>,
}

impl EventSink {
    pub(crate) fn subscribe(&mut self, observer: Observer) {
        self.observers.push(observer);
    }

    pub(crate) fn counters(&self) -> Counters {
        self.totals.read()
    }

    pub(crate) fn accept_failed(&self, error: &io::Error) {
        self.totals.accept_failed(error);
    }

    /// Counts a truncated datagram.
    pub(crate) fn truncated(&self) {
        self.totals.truncated();
    }

    pub(crate) fn dropped_by_kernel(&self, datagrams: u64) {
        self.totals.dropped_by_kernel(datagrams);
    }

    /// Counts a reply that was not sent because of the amplification limit.
    pub(crate) fn amplification_refused(&self) {
        self.totals.amplification_refused();
    }

    /// Returns the histogram of request durations. The first call starts the recording.
    #[cfg(feature = "metrics")]
    pub(crate) fn durations(&self) -> &Histogram {
        self.durations.get_or_init(Histogram::default)
    }

    /// Counts an event and passes it to `tracing` and the observers.
    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.totals.count(event);
        #[cfg(feature = "metrics")]
        if let (Event::Ended(_, end), Some(durations)) = (event, self.durations.get()) {
            durations.observe(end.elapsed);
        }
        // One atomic load: the level is `OFF` unless the application has installed a subscriber.
        if LevelFilter::current() != LevelFilter::OFF {
            // A subscriber is application code. It can panic, for example when its output is
            // closed.
            if catch_panic(|| trace(event)).is_err() {
                self.totals.hook_failed("tracing");
            }
        }
        for observer in &self.observers {
            if let Err(cause) = catch_panic(|| observer(event)) {
                // The failure is counted but not emitted as an event, because the observer would
                // fail on that event again without end.
                self.totals.hook_failed("on_event");
                let _ = catch_panic(|| {
                    tracing::error!(
                        hook = "on_event",
                        cause = format_args!("{cause:#}"),
                        "hook failed"
                    );
                });
            }
        }
    }
}

/// Logs an event. Events of requests are logged at debug level, and events for the operator at a
/// higher level.
fn trace(event: &Event<'_>) {
    match event {
        Event::Accepted(r) => tracing::debug!(id = %r.id(), peer = %r.peer(), "accepted"),
        Event::Rejected(r, reason) => {
            tracing::debug!(id = %r.id(), peer = %r.peer(), %reason, "refused");
        }
        Event::Dispatched(r) => tracing::trace!(id = %r.id(), "dispatched"),
        Event::Started(r) => tracing::trace!(id = %r.id(), "started"),
        Event::Closing(r) => tracing::trace!(id = %r.id(), "closing"),
        // Logged by `handle_error`, which the application can replace.
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
            "accepting paused: out of resources; clients wait in the backlog"
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
        Event::HookFailed { hook, cause } => {
            tracing::error!(hook, cause = format_args!("{cause:#}"), "hook failed");
        }
        Event::Stalled { name, duration } => tracing::warn!(
            name,
            ?duration,
            "stalled: a handler occupies its thread, and other requests wait"
        ),
        Event::DatagramsDropped { address, count } => tracing::warn!(
            %address,
            count,
            "the kernel dropped datagrams because they arrive faster than they are served; set \
             receive_buffer to hold larger bursts"
        ),
        Event::DisplacementStarted { limit, live } => tracing::warn!(
            limit,
            live,
            "places are short: connections that use nothing are cut for new ones"
        ),
        Event::DisplacementEnded { displaced, lasted } => {
            tracing::info!(
                displaced,
                ?lasted,
                "displacement ended: capacity is sufficient"
            );
        }
        // No other log line reports that the operator has made the server a lame duck, or ready
        // again.
        Event::StateChanged { from, to }
            if [from, to].contains(&&ServerState::LameDuck) && !to.is_ending() =>
        {
            tracing::info!(%from, %to, "state changed");
        }
        Event::StateChanged { from, to } => tracing::debug!(%from, %to, "state changed"),
        Event::DrainStarted { live, timeout } => {
            tracing::info!(live, ?timeout, "draining");
        }
        Event::DrainBacklogTaken { queued, refused } => {
            tracing::debug!(queued, refused, "backlog accepted");
        }
        Event::ListenerClosed { address } => tracing::debug!(%address, "listener closed"),
        Event::DrainDeadlineReached { live } => {
            tracing::info!(
                live,
                "drain deadline reached: cancelling the remaining requests"
            );
        }
        Event::DrainKilled { live } => {
            tracing::warn!(live, "killed children that did not end in time");
        }
        Event::DrainEnded(report) => tracing::info!(
            queued = report.queued,
            finished = report.finished,
            refused = report.refused,
            cancelled = report.cancelled,
            abandoned = report.abandoned,
            elapsed = ?report.elapsed,
            "drained"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::event::{EndReason, RequestSummary};
    use crate::server::RequestInfo;
    use crate::{Address, RequestId};

    /// Measures the cost of an event for each number of observers. In a release build:
    /// `cargo test --release -p socketserver --all-features --lib -- --ignored --nocapture emit_costs`
    #[test]
    #[ignore = "a measurement"]
    fn emit_costs() {
        let with_observers = |count: usize| {
            let mut sink = EventSink::default();
            let seen = Arc::new(AtomicU64::new(0));
            for _ in 0..count {
                let seen = seen.clone();
                sink.subscribe(Box::new(move |event| {
                    if let Event::Ended(..) = event {
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }));
            }
            sink
        };
        let peer: Address = Address::Inet(([127, 0, 0, 1], 1).into());
        let info = RequestInfo::new(RequestId::from(1), peer.clone(), Arc::new(peer));
        let ended = RequestSummary {
            reason: EndReason::Completed,
            received: 1,
            sent: 1,
            elapsed: Duration::from_millis(3),
        };
        let events = [
            ("started", Event::Started(&info)),
            ("accepted", Event::Accepted(&info)),
            ("ended", Event::Ended(&info, &ended)),
        ];
        let with_durations = with_observers(0);
        #[cfg(feature = "metrics")]
        with_durations.durations();
        let sinks = [
            ("no observer", with_observers(0)),
            ("metrics", with_durations),
            ("one observer", with_observers(1)),
            ("two observers", with_observers(2)),
        ];
        const ROUNDS: u32 = 1 << 22;
        for (name, event) in &events {
            for (label, sink) in &sinks {
                // The minimum of several runs, because other load only makes a run slower.
                let best = (0..5)
                    .map(|_| {
                        let start = Instant::now();
                        for _ in 0..ROUNDS {
                            black_box(sink).emit(black_box(event));
                        }
                        start.elapsed()
                    })
                    .min()
                    .unwrap_or_default();
                let each = best.as_secs_f64() * 1e9 / f64::from(ROUNDS);
                println!("{name:9} {label:14} {each:6.1} ns");
            }
        }
    }
}
