//! The sequence from the first signal to stop until the end of the servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socketserver::{GroupHandle, ServerGroup};

use crate::cli::Model;
use crate::service_manager;

/// The maximum durations of the phases after a signal to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShutdownTimeouts {
    /// The lame-duck phase: clients are served as before while readiness checks fail. Zero skips
    /// the phase.
    pub(crate) lame: Duration,
    /// The drain: new clients are not accepted, and current requests are served to their end.
    pub(crate) drain: Duration,
}

/// Drains the servers of the group. A sequential server may be busy with a handler that does not
/// wait for its client, and cannot cancel that at the deadline. Then a separate thread cancels it.
pub(crate) fn drain(group: &GroupHandle, timeout: Duration, model: Model) {
    service_manager::stopping("draining", timeout);
    if model != Model::Sequential {
        return group.drain(timeout);
    }
    let drained = group.clone();
    let drain_and_cut = move || {
        drained.drain(timeout);
        if !drained.wait(Some(timeout)) {
            for server in drained.handles() {
                for request in server.active() {
                    // The request may have ended in the meantime.
                    let _ = server.cancel(request.info.id());
                }
            }
        }
    };
    let started = std::thread::Builder::new()
        .name("drain".into())
        .spawn(drain_and_cut);
    if let Err(error) = started {
        tracing::warn!(%error, "cannot cancel a handler that is busy at the drain deadline");
        group.drain(timeout);
    }
}

#[derive(PartialEq, Eq)]
pub(super) enum ShutdownRequest {
    ToEnd,
    ToForce,
}

/// Signals within this time count as one. `timeout` signals both the process and its group, and a
/// closing terminal does so as well. An operator who repeats a signal takes longer.
const TOGETHER: Duration = Duration::from_millis(100);

/// The maximum duration. A longer one may overflow the clock, and a panic here would leave a server
/// that no signal ends.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// The reaction to signals to stop, in sequence.
pub(super) struct Stop {
    group: GroupHandle,
    patience: ShutdownTimeouts,
    model: Model,
    first: Option<Instant>,
    /// The time at which the drain begins, during the lame-duck phase.
    drains_at: Option<Instant>,
    forced: Arc<AtomicBool>,
}

impl Stop {
    pub(super) fn new(
        forced: Arc<AtomicBool>,
        group: &ServerGroup,
        patience: ShutdownTimeouts,
        model: Model,
    ) -> Self {
        Self {
            group: group.handle(),
            patience,
            model,
            first: None,
            drains_at: None,
            forced,
        }
    }

    pub(super) fn signalled(&mut self) -> ShutdownRequest {
        let Some(first) = self.first else {
            let now = Instant::now();
            self.first = Some(now);
            let ShutdownTimeouts { lame, drain } = self.patience;
            let lame = lame.min(LONGEST);
            if lame.is_zero() {
                self.drain();
            } else {
                self.drains_at = Some(now + lame);
                service_manager::stopping("lame", lame.saturating_add(drain));
                self.group.set_lame(true);
                tracing::info!(?lame, timeout = ?drain, "stop asked for; a second signal forces it");
            }
            return ShutdownRequest::ToEnd;
        };
        if first.elapsed() < TOGETHER {
            return ShutdownRequest::ToEnd;
        }
        self.drains_at = None;
        self.forced.store(true, Ordering::Relaxed);
        drain(&self.group, Duration::ZERO, self.model);
        tracing::warn!("forced to stop");
        ShutdownRequest::ToForce
    }

    /// Returns the rest of the lame-duck phase; `None` outside of a phase that a signal began.
    pub(super) fn lame_for(&self) -> Option<Duration> {
        let left = self.drains_at?.saturating_duration_since(Instant::now());
        // A timer of zero would never expire.
        Some(left.max(Duration::from_millis(1)))
    }

    /// Begins the drain if the servers are still in the lame-duck phase.
    pub(super) fn lame_is_over(&mut self) {
        if self.drains_at.take().is_some() {
            self.drain();
        }
    }

    fn drain(&self) {
        let timeout = self.patience.drain;
        drain(&self.group, timeout, self.model);
        tracing::info!(?timeout, "stop asked for; a second signal forces it");
    }

    pub(super) fn wait(&self, limit: Duration) -> bool {
        self.group.wait(Some(limit))
    }
}
