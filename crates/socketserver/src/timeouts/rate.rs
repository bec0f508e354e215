//! The least that a peer must move while it is waited for.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How fast a peer has to be: so many bytes per second, once some time has been granted.
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
    /// What Kestrel, the web server of .NET, asks for by default (240 bytes per second), with the
    /// patience of nginx's and Apache's defaults rather than its own 5 s: a person may be typing.
    pub(crate) const DEFAULT: Self = Self {
        bytes_per_second: 240,
        grace_millis: 30_000,
    };

    /// So many bytes per second, after the usual 30 s; 0 is taken as 1.
    #[must_use]
    pub const fn bytes_per_second(n: u32) -> Self {
        Self {
            bytes_per_second: if n == 0 { 1 } else { n },
            ..Self::DEFAULT
        }
    }

    /// How long nothing is asked for, in whole milliseconds: at least one, at most 49 days.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        let millis = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.grace_millis = millis.max(1);
        self
    }

    pub(crate) fn granted(self) -> Duration {
        Duration::from_millis(self.grace_millis.into())
    }

    /// How long so many bytes may take beyond the grace.
    pub(crate) fn time_for(self, bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1000) / u64::from(self.bytes_per_second))
    }

    /// How long a message may be waited for of which so many bytes have arrived.
    pub(crate) fn allows(self, bytes: u64) -> Duration {
        self.granted().saturating_add(self.time_for(bytes))
    }
}

/// What one direction has moved since the peer was first waited for, and the time that was spent on
/// such waits. Nobody else's time is counted: a server that is slow itself cuts nobody.
#[derive(Debug, Default)]
pub(crate) struct SendRateMeter {
    waited_micros: AtomicU64,
    moved: AtomicU64,
    /// Before, bytes only fill the kernel's buffer. From then on each of them finds the room of one
    /// that the peer has taken: with one wait comes room for many writes.
    has_waited: AtomicBool,
}

impl SendRateMeter {
    /// So many bytes have taken so long. Short times are nobody's fault.
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

    /// How much longer it may be waited for until that is to be checked.
    pub(crate) fn until_check(&self, rate: MinRate) -> Duration {
        let waited = Duration::from_micros(self.waited_micros.load(Ordering::Relaxed));
        let left = rate.granted().saturating_sub(waited);
        left.max(Duration::from_millis(1))
    }

    /// Whether it is fast enough; to be asked when there is no more room. When it was for as long as
    /// the grace, that begins anew.
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
                "the peer reads more slowly than the lowest rate that is allowed",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_gets_its_grace_and_the_time_for_its_bytes() {
        let rate = MinRate::bytes_per_second(100).grace(Duration::from_secs(2));
        assert_eq!(rate.allows(0), Duration::from_secs(2));
        assert_eq!(rate.allows(50), Duration::from_millis(2500));
        assert!(rate.allows(u64::MAX) > Duration::from_secs(1 << 40));
    }

    #[test]
    fn only_who_is_slow_for_longer_than_the_grace_is_too_slow() {
        let rate = MinRate::bytes_per_second(100).grace(Duration::from_secs(1));
        let pace = SendRateMeter::default();
        pace.moved(10, Duration::from_millis(900));
        pace.check(rate).unwrap();
        // Together 110 bytes in 1.1 s.
        pace.moved(100, Duration::from_millis(200));
        pace.check(rate).unwrap();
        // Before, it was fast; that does not count any more.
        pace.moved(90, Duration::from_secs(1));
        assert_eq!(
            pace.check(rate).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        pace.moved(0, Duration::from_micros(999));
        pace.check(rate).unwrap();
    }

    #[test]
    fn what_finds_room_after_a_wait_counts_and_what_fills_the_buffer_before_does_not() {
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
