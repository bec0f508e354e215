//! The log of connections and rejections of a program. The library logs all other events.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use socketserver::{EndReason, Event, Forking, Rejection, RequestInfo};

/// The maximum number of lines about rejected clients per window. Strangers decide the rate of
/// their connections and must not fill a disk through the log. Metrics count all rejections.
const LINES_PER_WINDOW: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// The log of one server's clients.
#[derive(Default)]
pub(super) struct ConnectionLog {
    rejections: Mutex<Option<Window>>,
}

struct Window {
    began: Instant,
    logged: u32,
    left_out: u64,
}

impl ConnectionLog {
    pub(super) fn observe(&self, event: &Event<'_>) {
        match event {
            // Logs at dispatch rather than at accept, so that a client that is rejected afterwards
            // takes one line only.
            Event::Dispatched(r) => {
                tracing::info!(id = %r.id(), peer = %r.peer(), listener = %r.listener(), "connected");
            }
            Event::Started(r) => {
                if let Some(proxy) = r.proxy() {
                    tracing::info!(id = %r.id(), peer = %r.peer(), %proxy, "forwarded");
                }
            }
            Event::Rejected(r, reason) => self.log_rejection(r, reason, Instant::now()),
            Event::Ended(r, end) => {
                let (id, peer, listener, reason) = (r.id(), r.peer(), r.listener(), end.reason);
                match reason {
                    // The process crashed, or the system was short of memory.
                    EndReason::Killed(signal) if signal != Forking::CANCEL_SIGNAL => {
                        tracing::warn!(%id, %peer, %listener, %reason, "disconnected");
                    }
                    _ => tracing::info!(%id, %peer, %listener, %reason, "disconnected"),
                }
            }
            // No later event would report the rest.
            Event::DrainEnded(_) => self.log_rest(),
            _ => {}
        }
    }

    fn log_rejection(&self, r: &RequestInfo, reason: &Rejection, now: Instant) {
        let mut window = self
            .rejections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let current = match &mut *window {
            Some(current) if now.duration_since(current.began) < WINDOW => current,
            past => {
                if let Some(past) = past {
                    past.log_rest();
                }
                past.insert(Window {
                    began: now,
                    logged: 0,
                    left_out: 0,
                })
            }
        };
        if current.logged == LINES_PER_WINDOW {
            current.left_out += 1;
            return;
        }
        current.logged += 1;
        let (id, peer, listener) = (r.id(), r.peer(), r.listener());
        if concerns_operator(reason) {
            tracing::warn!(%id, %peer, %listener, %reason, "rejected");
        } else {
            tracing::info!(%id, %peer, %listener, %reason, "rejected");
        }
    }

    fn log_rest(&self) {
        let window = self
            .rejections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = &*window {
            window.log_rest();
        }
    }
}

/// Returns true if the rejection shows a limit or a setting to correct: the server has no capacity,
/// or a trusted proxy does not speak the protocol. Failed handshakes are mostly those of scanners,
/// and rules and rates reject on purpose.
fn concerns_operator(reason: &Rejection) -> bool {
    matches!(
        reason,
        Rejection::AtLimit | Rejection::NoDescriptors | Rejection::ProxyHeader(_)
    )
}

impl Window {
    fn log_rest(&self) {
        if self.left_out > 0 {
            tracing::info!(
                count = self.left_out,
                "rejected more clients within a second"
            );
        }
    }
}
