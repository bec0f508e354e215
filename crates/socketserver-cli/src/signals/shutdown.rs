//! From the first signal that stops the servers to their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socketserver::{GroupHandle, ServerGroup};

use crate::cli::Model;
use crate::service_manager;

/// How long what follows a signal may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShutdownTimeouts {
    /// Everybody is served as before, but told not to come; zero leaves it out.
    pub(crate) lame: Duration,
    /// Nobody comes any more, and who is there is served to the end.
    pub(crate) drain: Duration,
}

/// Drains the group's servers. A sequential one may be busy itself, with a handler that waits for
/// something else than its client, and cannot cut that at the deadline: then somebody else does.
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
                    // It may have ended meanwhile.
                    let _ = server.cancel(request.info.id());
                }
            }
        }
    };
    let started = std::thread::Builder::new()
        .name("drain".into())
        .spawn(drain_and_cut);
    if let Err(error) = started {
        tracing::warn!(%error, "a handler that is busy when the time is over is not cut");
        group.drain(timeout);
    }
}

#[derive(PartialEq, Eq)]
pub(super) enum ShutdownRequest {
    ToEnd,
    ToForce,
}

/// Signals that come together are one: `timeout` sends its own to the process and to its group, and
/// a terminal that closes does so, too. Whoever loses patience takes longer.
const TOGETHER: Duration = Duration::from_millis(100);

/// More may not fit into the clock, and a panic here would leave a server that no signal ends.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// What signals to stop do, one after the other.
pub(super) struct Stop {
    group: GroupHandle,
    patience: ShutdownTimeouts,
    model: Model,
    first: Option<Instant>,
    /// While it is lame: when it begins to drain.
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

    /// How much of the time is left for which it is lame; `None` if it is not because of a signal.
    pub(super) fn lame_for(&self) -> Option<Duration> {
        let left = self.drains_at?.saturating_duration_since(Instant::now());
        // Zero is no time to wait for: it would mean for ever.
        Some(left.max(Duration::from_millis(1)))
    }

    /// Drains, if it was lame until now.
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
