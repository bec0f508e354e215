//! Counters and times. Each worker has its own, and they are added up at the end.
//!
//! Two sets are separate. The result and the latency of a request count if the request *began* in
//! the measured window, even if it ended later. Throughput counts requests that *ended* in the
//! window, even if they began earlier. Otherwise the first set would miss slow requests, and the
//! second set those at the edges.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::cpu_usage::CpuUsage;
use super::failure::{Failure, Kind};

#[derive(Debug)]
pub(super) struct Stats {
    /// The latencies, in nanoseconds, of the requests that began in the window.
    pub(super) latency: Histogram<u64>,
    /// The number of failures of such requests, in the order of [`Kind::ALL`].
    pub(super) failures: [u64; Kind::ALL.len()],
    /// The first details for each kind.
    pub(super) details: [Option<String>; Kind::ALL.len()],
    /// The number of such requests that were due before the end but had no free connection until
    /// then.
    pub(super) not_sent: u64,
    /// The requests that ended in the window.
    pub(super) done: Completed,
    /// The times to establish each connection, including the TLS handshake; also before the window.
    pub(super) connect: Histogram<u64>,
    /// The connections that were established when the load began.
    pub(super) connected: u64,
    /// The connections that the server closed between two requests.
    pub(super) closed_idle: u64,
    /// The time from the begin of the window to its end, or to the interruption.
    pub(super) window: Duration,
    /// The CPU usage of the load tool in the window.
    pub(super) used: CpuUsage,
    /// The share of one core that the busiest worker used.
    pub(super) busiest: f64,
    /// The share of the window in which a worker was ready to run and had no core, for the worst
    /// worker.
    pub(super) run_queue_delay: f64,
}

/// Totals of the measured window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Completed {
    pub(super) requests: u64,
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
}

/// The maximum latency in nanoseconds, above any sensible `--timeout`. Longer times count as this
/// one.
const LONGEST: u64 = 3_600_000_000_000;

impl Stats {
    pub(super) fn new() -> anyhow::Result<Self> {
        // Three significant digits take 270 KiB.
        let empty = Histogram::new_with_bounds(1, LONGEST, 3)?;
        Ok(Self {
            latency: empty.clone(),
            failures: Default::default(),
            details: Default::default(),
            not_sent: 0,
            done: Completed::default(),
            connect: empty,
            connected: 0,
            closed_idle: 0,
            window: Duration::ZERO,
            used: CpuUsage::default(),
            busiest: 0.0,
            run_queue_delay: 0.0,
        })
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        let index = failure.kind as usize;
        self.failures[index] += 1;
        if self.details[index].is_none() {
            self.details[index] = failure.detail;
        }
    }

    pub(super) fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    pub(super) fn answered(&self) -> u64 {
        self.latency.len()
    }

    /// Returns the kinds that occurred, with their counts and details.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (Kind, u64, Option<&str>)> {
        Kind::ALL.into_iter().filter_map(|kind| {
            let n = self.failures[kind as usize];
            (n > 0).then(|| (kind, n, self.details[kind as usize].as_deref()))
        })
    }

    pub(super) fn add(&mut self, other: Self) -> anyhow::Result<()> {
        self.latency.add(&other.latency)?;
        self.connect.add(&other.connect)?;
        for (total, n) in self.failures.iter_mut().zip(other.failures) {
            *total += n;
        }
        for (kept, detail) in self.details.iter_mut().zip(other.details) {
            *kept = kept.take().or(detail);
        }
        self.not_sent += other.not_sent;
        self.done.requests += other.done.requests;
        self.done.sent_bytes += other.done.sent_bytes;
        self.done.received_bytes += other.done.received_bytes;
        self.connected += other.connected;
        self.closed_idle += other.closed_idle;
        self.window = self.window.max(other.window);
        self.used.add(other.used);
        self.busiest = self.busiest.max(other.busiest);
        self.run_queue_delay = self.run_queue_delay.max(other.run_queue_delay);
        Ok(())
    }

    /// Returns the rate per second of events that ended in the window.
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52")]
    pub(super) fn per_second(&self, n: u64) -> f64 {
        if self.window.is_zero() {
            return 0.0;
        }
        n as f64 / self.window.as_secs_f64()
    }
}

pub(super) fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_in_the_order_of_their_counters() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }

    #[test]
    fn add_sums_counters_and_keeps_the_first_details() {
        let mut one = Stats::new().unwrap();
        let mut other = Stats::new().unwrap();
        record(&mut one.latency, Duration::from_millis(1));
        record(&mut other.latency, Duration::from_secs(9999));
        one.fail(Failure::new(Kind::Other, "first"));
        other.fail(Failure::new(Kind::Other, "second"));
        other.fail(Kind::Reset.into());
        (one.busiest, other.busiest) = (0.5, 0.9);
        one.add(other).unwrap();
        assert_eq!((one.answered(), one.failed()), (2, 3));
        assert!(
            one.latency.max() >= LONGEST,
            "values above the maximum are saturated"
        );
        let kinds: Vec<_> = one.kinds().collect();
        assert_eq!(
            kinds,
            [(Kind::Reset, 1, None), (Kind::Other, 2, Some("first"))]
        );
        assert!(one.busiest > 0.8);
    }
}
