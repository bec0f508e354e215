//! Who comes and goes, for the log of a program; all else is logged by the library.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use socketserver::{EndReason, Event, Forking, Rejection, RequestInfo};

/// So many lines about clients that are turned away, in so long: strangers decide how often they
/// come, and must not fill a disk by it. Metrics count all of them.
const TOLD: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// The log of one server's clients.
#[derive(Default)]
pub(super) struct ConnectionLog {
    refused: Mutex<Option<Window>>,
}

struct Window {
    began: Instant,
    told: u32,
    left_out: u64,
}

impl ConnectionLog {
    pub(super) fn observe(&self, event: &Event<'_>) {
        match event {
            // Not when it is accepted: it may still be turned away, and that takes one line only.
            Event::Dispatched(r) => {
                tracing::info!(id = %r.id(), peer = %r.peer(), listener = %r.listener(), "connected");
            }
            Event::Started(r) => {
                if let Some(proxy) = r.proxy() {
                    tracing::info!(id = %r.id(), peer = %r.peer(), %proxy, "forwarded");
                }
            }
            Event::Rejected(r, reason) => self.refused(r, reason, Instant::now()),
            Event::Ended(r, end) => {
                let (id, peer, listener, reason) = (r.id(), r.peer(), r.listener(), end.reason);
                match reason {
                    // It crashed, or the system was short of memory.
                    EndReason::Killed(signal) if signal != Forking::CUT => {
                        tracing::warn!(%id, %peer, %listener, %reason, "disconnected");
                    }
                    _ => tracing::info!(%id, %peer, %listener, %reason, "disconnected"),
                }
            }
            // Nobody comes any more who would have the rest told.
            Event::DrainEnded(_) => self.tell_rest(),
            _ => {}
        }
    }

    fn refused(&self, r: &RequestInfo, reason: &Rejection, now: Instant) {
        let mut window = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match &mut *window {
            Some(current) if now.duration_since(current.began) < WINDOW => current,
            past => {
                if let Some(past) = past {
                    past.tell_rest();
                }
                past.insert(Window {
                    began: now,
                    told: 0,
                    left_out: 0,
                })
            }
        };
        if current.told == TOLD {
            current.left_out += 1;
            return;
        }
        current.told += 1;
        let (id, peer, listener) = (r.id(), r.peer(), r.listener());
        if concerns_operator(reason) {
            tracing::warn!(%id, %peer, %listener, %reason, "refused");
        } else {
            tracing::info!(%id, %peer, %listener, %reason, "refused");
        }
    }

    fn tell_rest(&self) {
        let window = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = &*window {
            window.tell_rest();
        }
    }
}

/// Whether something here is too small or set up wrongly: the server has no room, or a proxy that is
/// trusted does not speak the protocol. Handshakes that fail are mostly those of scanners, and what a
/// rule or a rate refuses is refused on purpose.
fn concerns_operator(reason: &Rejection) -> bool {
    matches!(
        reason,
        Rejection::AtLimit | Rejection::NoDescriptors | Rejection::ProxyHeader(_)
    )
}

impl Window {
    fn tell_rest(&self) {
        if self.left_out > 0 {
            tracing::info!(count = self.left_out, "refused many more within a second");
        }
    }
}
