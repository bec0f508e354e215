//! A rate limit for one kind of log line, because clients can cause such lines at any rate.

use std::time::{Duration, Instant};

/// Permits one line per second, and counts the suppressed lines.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    last_line: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Returns the number of suppressed lines since the last line if a line may be written now, and
    /// `None` otherwise.
    pub(crate) fn told(&mut self, now: Instant) -> Option<u64> {
        let is_early = |last: Instant| now.saturating_duration_since(last) < Self::INTERVAL;
        if self.last_line.is_some_and(is_early) {
            self.suppressed += 1;
            return None;
        }
        self.last_line = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_permits_one_line_per_second_and_counts_the_rest() {
        let (mut throttle, begin) = (Throttle::default(), Instant::now());
        let mut at = |millis| throttle.told(begin + Duration::from_millis(millis));
        assert_eq!(at(0), Some(0));
        assert_eq!(at(1), None);
        assert_eq!(at(999), None);
        assert_eq!(at(1000), Some(2));
        assert_eq!(at(5000), Some(0));
    }
}
