//! A histogram of durations with fixed buckets. Recording a duration costs two atomic additions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds in milliseconds. They cover requests from single datagrams to connections of
/// several hours.
const BOUNDS: [u64; 13] = [
    1, 5, 10, 50, 100, 500, 1_000, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000,
];

/// A histogram of request durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// Counts per bucket, not cumulative. The last bucket holds the durations above all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// The sum in nanoseconds, enough for 584 years of requests one after the other.
    sum: AtomicU64,
}

/// A snapshot of a histogram.
pub(super) struct HistogramSnapshot {
    /// Upper bounds in seconds, each with the number of durations up to the bound. The last bound
    /// is infinite.
    pub(super) cumulative: Vec<(f64, u64)>,
    pub(super) count: u64,
    /// The sum in seconds.
    pub(super) sum: f64,
}

impl Histogram {
    pub(crate) fn observe(&self, duration: Duration) {
        // A duration equal to a bound belongs to the bucket of that bound, because `le` is less or
        // equal.
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
            // Derived from the buckets, so that the count equals their sum even during concurrent
            // updates.
            count,
            sum: Duration::from_nanos(self.sum.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_equal_to_a_bound_is_in_its_bucket() {
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
    fn longest_duration_is_counted() {
        let histogram = Histogram::default();
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.read().count, 1);
    }
}
