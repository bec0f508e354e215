//! The minimum transfer rate of a peer.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The minimum transfer rate of a peer, in bytes per second, enforced after a grace period.
///
/// ```
/// use socketserver::{MinRate, Timeouts};
/// use std::time::Duration;
///
/// let rate = MinRate::bytes_per_second(1000).grace(Duration::from_secs(10));
/// let timeouts = Timeouts::default().receive_rate(Some(rate));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    pub(crate) bytes_per_second: u32,
    grace_millis: u32,
}

impl MinRate {
    /// The default rate of Kestrel, the web server of .NET (240 bytes per second), with the 30 s
    /// grace period of nginx's and Apache's defaults. Kestrel's own 5 s are too short for a person
    /// who types.
    pub(crate) const DEFAULT: Self = Self {
        bytes_per_second: 240,
        grace_millis: 30_000,
    };

    /// Creates a rate of `n` bytes per second after a grace period of 30 s. A value of 0 counts as
    /// 1.
    #[must_use]
    pub const fn bytes_per_second(n: u32) -> Self {
        Self {
            bytes_per_second: if n == 0 { 1 } else { n },
            ..Self::DEFAULT
        }
    }

    /// Sets the time during which the rate is not enforced, in whole milliseconds: at least 1 ms,
    /// at most 49 days. Defaults to 30 s.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        let millis = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.grace_millis = millis.max(1);
        self
    }

    pub(crate) fn granted(self) -> Duration {
        Duration::from_millis(self.grace_millis.into())
    }

    /// Returns the time that `bytes` may take, without the grace period.
    pub(crate) fn time_for(self, bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1000) / u64::from(self.bytes_per_second))
    }

    /// Returns the maximum total wait for a message of which `bytes` bytes have arrived.
    pub(crate) fn allows(self, bytes: u64) -> Duration {
        self.granted().saturating_add(self.time_for(bytes))
    }
}

/// Bytes transferred in one direction since the first wait for the peer, and the total duration of
/// such waits. Only waits for the peer count, so that a slow server never disconnects a peer.
#[derive(Debug, Default)]
pub(crate) struct SendRateMeter {
    waited_micros: AtomicU64,
    moved: AtomicU64,
    /// True after the first wait. Before, writes only fill the kernel's buffer. Afterwards, each
    /// byte takes the room of a byte that the peer has read. One wait can make room for many
    /// writes, so those writes count too.
    has_waited: AtomicBool,
}

impl SendRateMeter {
    /// Records that `bytes` were transferred in `took`. A time under 1 ms does not count as a wait.
    pub(crate) fn moved(&self, bytes: usize, took: Duration) {
        if took >= Duration::from_millis(1) {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.waited_micros.fetch_add(micros, Ordering::Relaxed);
            self.has_waited.store(true, Ordering::Relaxed);
        } else if !self.has_waited.load(Ordering::Relaxed) {
            return;
        }
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Returns the time left until the next [`check`](Self::check) is due.
    pub(crate) fn until_check(&self, rate: MinRate) -> Duration {
        let waited = Duration::from_micros(self.waited_micros.load(Ordering::Relaxed));
        let left = rate.granted().saturating_sub(waited);
        left.max(Duration::from_millis(1))
    }

    /// Checks the peer's rate; called when there is no room to write. A full grace period that
    /// passes the check starts a new one.
    pub(crate) fn check(&self, rate: MinRate) -> io::Result<()> {
        let waited = Duration::from_micros(self.waited_micros.load(Ordering::Relaxed));
        if waited < rate.granted() {
            return Ok(());
        }
        let moved = self.moved.swap(0, Ordering::Relaxed);
        self.waited_micros.store(0, Ordering::Relaxed);
        if rate.time_for(moved) < waited {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer reads more slowly than the minimum send rate",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_time_is_grace_plus_time_for_its_bytes() {
        let rate = MinRate::bytes_per_second(100).grace(Duration::from_secs(2));
        assert_eq!(rate.allows(0), Duration::from_secs(2));
        assert_eq!(rate.allows(50), Duration::from_millis(2500));
        assert!(rate.allows(u64::MAX) > Duration::from_secs(1 << 40));
    }

    #[test]
    fn check_fails_only_when_the_rate_is_too_low_for_longer_than_the_grace() {
        let rate = MinRate::bytes_per_second(100).grace(Duration::from_secs(1));
        let meter = SendRateMeter::default();
        meter.moved(10, Duration::from_millis(900));
        meter.check(rate).unwrap();
        // A total of 110 bytes in 1.1 s.
        meter.moved(100, Duration::from_millis(200));
        meter.check(rate).unwrap();
        // The check above started a new period, so the earlier bytes no longer count.
        meter.moved(90, Duration::from_secs(1));
        assert_eq!(
            meter.check(rate).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        meter.moved(0, Duration::from_micros(999));
        meter.check(rate).unwrap();
    }

    #[test]
    fn bytes_count_only_after_the_first_wait() {
        let rate = MinRate::bytes_per_second(100).grace(Duration::from_secs(1));
        let (slow, fast) = (SendRateMeter::default(), SendRateMeter::default());
        slow.moved(1000, Duration::ZERO);
        slow.moved(1, Duration::from_secs(2));
        assert!(slow.check(rate).is_err());
        fast.moved(1, Duration::from_secs(2));
        fast.moved(200, Duration::ZERO);
        fast.check(rate).unwrap();
    }
}
