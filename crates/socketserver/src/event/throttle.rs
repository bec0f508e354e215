//! How often one kind of line goes into the log: clients may decide how often there is one to write.

use std::time::{Duration, Instant};

/// Lets one line through per second, with a count of those that were left out.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    told: Option<Instant>,
    left_out: u64,
}

impl Throttle {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// If the line is to be written: how many were left out since the last one.
    pub(crate) fn told(&mut self, now: Instant) -> Option<u64> {
        let is_early = |told: Instant| now.saturating_duration_since(told) < Self::INTERVAL;
        if self.told.is_some_and(is_early) {
            self.left_out += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_second_counts_the_others() {
        let (mut throttle, begin) = (Throttle::default(), Instant::now());
        let mut at = |millis| throttle.told(begin + Duration::from_millis(millis));
        assert_eq!(at(0), Some(0));
        assert_eq!(at(1), None);
        assert_eq!(at(999), None);
        assert_eq!(at(1000), Some(2));
        assert_eq!(at(5000), Some(0));
    }
}
