//! Reports datagrams that the kernel has dropped: at once, and then once per second at most, so
//! that a flood of datagrams does not cause a flood of reports.

use std::time::{Duration, Instant};

use super::Server;
use crate::concurrency::Concurrency;
use crate::event::Event;
use crate::transport::Transport;

const INTERVAL: Duration = Duration::from_secs(1);

/// The drop counts of one listener.
#[derive(Default)]
pub(super) struct DropReporter {
    untold: u64,
    told: Option<Instant>,
}

impl DropReporter {
    /// Adds to the count. Returns the number to report now.
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
    /// Updates the count of a listener after a receive.
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
    fn drops_are_reported_at_once_then_once_per_second_and_completely() {
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
