//! Telling of datagrams that the kernel has dropped: at once, and then once per second at most, as
//! whoever is flooded with datagrams must not be flooded with words as well.

use std::time::{Duration, Instant};

use super::Server;
use crate::concurrency::Concurrency;
use crate::event::Event;
use crate::transport::Transport;

const INTERVAL: Duration = Duration::from_secs(1);

/// What a gate knows of them.
#[derive(Default)]
pub(super) struct DropReporter {
    untold: u64,
    told: Option<Instant>,
}

impl DropReporter {
    /// Counts some more; how many to tell of now.
    fn count(&mut self, more: u64, now: impl FnOnce() -> Instant) -> Option<u64> {
        self.untold += more;
        if self.untold == 0 {
            return None;
        }
        let now = now();
        let is_early = |told: Instant| now.saturating_duration_since(told) < INTERVAL;
        if self.told.is_some_and(is_early) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl<T: Transport, C: Concurrency> Server<T, C> {
    /// To be called when something was received at a gate.
    pub(super) fn set_recv_drop_count(&mut self, listener: usize) {
        let more = std::mem::take(&mut self.accept_context.dropped);
        let listener = &mut self.listeners[listener];
        if let Some(count) = listener.drops.count(more, Instant::now) {
            let address = &listener.address;
            self.shared
                .emit(&Event::DatagramsDropped { address, count });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_at_once_and_then_once_per_second_and_completely() {
        let (mut drops, begin) = (DropReporter::default(), Instant::now());
        let mut at = |millis, more| drops.count(more, || begin + Duration::from_millis(millis));
        assert_eq!(at(0, 0), None);
        assert_eq!(at(1, 3), Some(3));
        assert_eq!(at(2, 4), None);
        assert_eq!(at(1000, 5), None);
        assert_eq!(at(1001, 0), Some(9));
        assert_eq!(at(9999, 0), None);
        assert_eq!(at(9999, 1), Some(1));
    }
}
