//! Where events go: counters, `tracing`, and whoever has subscribed.

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
    /// How long requests took, from when somebody asked for metrics.
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

    /// A datagram was longer than there is room for.
    pub(crate) fn truncated(&self) {
        self.totals.truncated();
    }

    pub(crate) fn dropped_by_kernel(&self, datagrams: u64) {
        self.totals.dropped_by_kernel(datagrams);
    }

    /// A reply was not sent, as it would have been too much.
    pub(crate) fn amplification_refused(&self) {
        self.totals.amplification_refused();
    }

    /// Begins to keep the durations of requests, if nobody has asked for them before.
    #[cfg(feature = "metrics")]
    pub(crate) fn durations(&self) -> &Histogram {
        self.durations.get_or_init(Histogram::default)
    }

    /// Counts an event, and passes it on. Without anybody to pass it on to, that is all.
    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.totals.count(event);
        #[cfg(feature = "metrics")]
        if let (Event::Ended(_, end), Some(durations)) = (event, self.durations.get()) {
            durations.observe(end.elapsed);
        }
        // One load: it is off while the application has installed no subscriber.
        if LevelFilter::current() != LevelFilter::OFF {
            // A subscriber is the application's as well: it may panic when its output is gone.
            if catch_panic(|| trace(event)).is_err() {
                self.totals.hook_failed("tracing");
            }
        }
        for observer in &self.observers {
            if let Err(cause) = catch_panic(|| observer(event)) {
                // Not emitted: the observer would be told of its own failure for ever.
                self.totals.hook_failed("on_event");
                let _ = catch_panic(|| {
                    tracing::error!(
                        hook = "on_event",
                        cause = format_args!("{cause:#}"),
                        "hook failed"
                    )
                });
            }
        }
    }
}

/// Requests are told at debug level, what an operator should know above it.
fn trace(event: &Event<'_>) {
    match event {
        Event::Accepted(r) => tracing::debug!(id = %r.id(), peer = %r.peer(), "accepted"),
        Event::Rejected(r, reason) => {
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
        Event::HookFailed { hook, cause } => {
            tracing::error!(hook, cause = format_args!("{cause:#}"), "hook failed")
        }
        Event::Stalled { name, duration } => tracing::warn!(
            name,
            ?duration,
            "stalled: a handler keeps its thread to itself, and others wait"
        ),
        Event::DatagramsDropped { address, count } => tracing::warn!(
            %address,
            count,
            "datagrams were dropped by the kernel: they come faster than they are served; \
             receive_buffer makes room for bursts"
        ),
        Event::DisplacementStarted { limit, live } => tracing::warn!(
            limit,
            live,
            "places are short: connections that use nothing are cut for new ones"
        ),
        Event::DisplacementEnded { displaced, lasted } => {
            tracing::info!(displaced, ?lasted, "places are not short any more");
        }
        // That somebody has made it lame, or ready again, is not told by anything else.
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
            tracing::debug!(queued, refused, "the backlog is taken");
        }
        Event::ListenerClosed { address } => tracing::debug!(%address, "listener closed"),
        Event::DrainDeadlineReached { live } => {
            tracing::info!(live, "the drain's time is over: what is left is cut");
        }
        Event::DrainKilled { live } => {
            tracing::warn!(live, "children that did not end were killed");
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

    /// What every request costs, whoever listens. In a release build:
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
        let keeping_durations = with_observers(0);
        #[cfg(feature = "metrics")]
        keeping_durations.durations();
        let reporters = [
            ("nobody", with_observers(0)),
            ("metrics", keeping_durations),
            ("one observer", with_observers(1)),
            ("two observers", with_observers(2)),
        ];
        const ROUNDS: u32 = 1 << 22;
        for (name, event) in &events {
            for (who, sink) in &reporters {
                // The best of several: whatever else runs only ever makes it slower.
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
                println!("{name:9} {who:14} {each:6.1} ns");
            }
        }
    }
}
