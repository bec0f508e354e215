//! What was counted and timed. Each worker has its own; they are added up at the end.
//!
//! Two things are kept apart. What became of a request, and how long it took, is counted if the
//! request *began* in the measured window, whenever it ended. How much was done per second is counted
//! by what *ended* in the window, whenever it began. The first would lose the slow ones otherwise,
//! and the second those at the edges.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::cpu_usage::CpuUsage;
use super::failure::{Failure, Kind};

#[derive(Debug)]
pub(super) struct Stats {
    /// Of requests that began in the window: how long each took, in nanoseconds.
    pub(super) latency: Histogram<u64>,
    /// The others of these, in the order of [`Kind::ALL`].
    pub(super) failures: [u64; Kind::ALL.len()],
    /// The first words about each kind.
    pub(super) details: [Option<String>; Kind::ALL.len()],
    /// Of these that were due before the end, and found no connection free until then.
    pub(super) not_sent: u64,
    /// What ended in the window.
    pub(super) done: Completed,
    /// How long each connection took to be there, the handshake of TLS included; also before the window.
    pub(super) connect: Histogram<u64>,
    /// Connections that were there when the load began.
    pub(super) connected: u64,
    /// Connections that the server closed between two requests.
    pub(super) closed_idle: u64,
    /// From the begin of the window to its end, or to the interruption.
    pub(super) window: Duration,
    /// What the load tool itself has used in the window.
    pub(super) used: CpuUsage,
    /// How busy the busiest worker was: of one core.
    pub(super) busiest: f64,
    /// For how much of the window a worker was ready to run, and no core was free: the worst.
    pub(super) run_queue_delay: f64,
}

/// In the measured window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Completed {
    pub(super) requests: u64,
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
}

/// Longer than any sensible `--timeout`; what takes longer is counted as that.
const LONGEST: u64 = 3_600_000_000_000;

impl Stats {
    pub(super) fn new() -> anyhow::Result<Self> {
        // Three digits are right; that takes 270 KiB.
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

    /// Those kinds that there were, with their number and words.
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

    /// Of something that ended in the window.
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
    fn names_stand_where_they_are_counted() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }

    #[test]
    fn tallies_add_up_and_the_first_words_stay() {
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
        assert!(one.latency.max() >= LONGEST, "saturated, and not lost");
        let kinds: Vec<_> = one.kinds().collect();
        assert_eq!(
            kinds,
            [(Kind::Reset, 1, None), (Kind::Other, 2, Some("first"))]
        );
        assert!(one.busiest > 0.8);
    }
}
