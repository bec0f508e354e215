//! Durations in fixed buckets: two atomic additions for each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in milliseconds. Requests are single datagrams, and connections of hours.
const BOUNDS: [u64; 13] = [
    1, 5, 10, 50, 100, 500, 1_000, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000,
];

/// How many requests took how long.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// Each for itself; the last one is for what took longer than all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// Nanoseconds: enough for 584 years of requests, one after the other.
    sum: AtomicU64,
}

/// A histogram as it was at some moment.
pub(super) struct HistogramSnapshot {
    /// Upper bounds in seconds, and how many took no longer; the last bound is infinite.
    pub(super) cumulative: Vec<(f64, u64)>,
    pub(super) count: u64,
    /// In seconds.
    pub(super) sum: f64,
}

impl Histogram {
    pub(crate) fn observe(&self, duration: Duration) {
        // A bound belongs to its bucket: `le` is less or equal.
        let within = |bound: &u64| duration > Duration::from_millis(*bound);
        let index = BOUNDS.partition_point(within);
        self.buckets[index].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> HistogramSnapshot {
        let bounds = BOUNDS
            .into_iter()
            .map(|millis| Duration::from_millis(millis).as_secs_f64());
        let mut count = 0;
        let cumulative = bounds
            .chain([f64::INFINITY])
            .zip(&self.buckets)
            .map(|(bound, bucket)| {
                count += bucket.load(Ordering::Relaxed);
                (bound, count)
            })
            .collect();
        HistogramSnapshot {
            cumulative,
            // Not kept beside the buckets: it has to be what they add up to, whatever goes on.
            count,
            sum: Duration::from_nanos(self.sum.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::default();
        for micros in [0, 1_000, 1_001, 3_600_000_000, 3_600_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let HistogramSnapshot {
            cumulative,
            count,
            sum,
        } = histogram.read();
        assert_eq!(cumulative[0], (0.001, 2));
        assert_eq!(cumulative[1], (0.005, 3));
        assert_eq!(cumulative[12], (3600.0, 4));
        assert_eq!(cumulative[13], (f64::INFINITY, 5));
        assert_eq!(count, 5);
        assert!((sum - 7_200.002_002).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn no_duration_is_too_long() {
        let histogram = Histogram::default();
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.read().count, 1);
    }
}
