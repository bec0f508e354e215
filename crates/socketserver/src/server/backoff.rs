//! What a failed accept means, and how long to leave it alone.

use std::time::{Duration, Instant};

use rustix::io::Errno;

/// What to do about an error of `accept(2)` or `recvfrom(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptErrorClass {
    /// Nothing is waiting.
    Empty,
    /// It concerns one client that is gone already: take the next.
    Retry,
    /// The process or the system is out of something: trying again at once would spin.
    Exhausted,
    /// The descriptor is no listener: no retry helps.
    Fatal,
}

impl AcceptErrorClass {
    pub(crate) fn of(errno: Errno) -> Self {
        match errno {
            Errno::AGAIN => Self::Empty,
            // accept(2): errors of the new socket that are already pending; "treat them like
            // EAGAIN by retrying". The last two are what earlier replies by UDP met.
            Errno::INTR
            | Errno::CONNABORTED
            | Errno::NETDOWN
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
            | Errno::PERM
            | Errno::TIMEDOUT
            | Errno::CONNRESET
            | Errno::CONNREFUSED
            | Errno::MSGSIZE => Self::Retry,
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSR => {
                Self::Exhausted
            }
            _ => Self::Fatal,
        }
    }
}

/// Grows from 5 ms to 1 s while attempts fail.
#[derive(Debug, Default)]
pub(crate) struct BackOff {
    delay: Duration,
    until: Option<Instant>,
    last_failure: Option<Instant>,
    failures: u32,
}

const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(1);
/// Failures that are closer together than this belong to one episode, which is told once.
const EPISODE: Duration = Duration::from_secs(10);

impl BackOff {
    /// One more failure; `true` if it begins an episode.
    pub(crate) fn failed(&mut self, now: Instant) -> bool {
        let begins = self
            .last_failure
            .is_none_or(|last| now.duration_since(last) > EPISODE);
        self.delay = if begins {
            FIRST
        } else {
            (self.delay * 2).clamp(FIRST, LONGEST)
        };
        self.until = Some(now + self.delay);
        self.last_failure = Some(now);
        self.failures = self.failures.saturating_add(1);
        begins
    }

    /// It is worth an attempt then, if it would be made later.
    pub(crate) fn no_later_than(&mut self, at: Instant) {
        self.until = self.until.map(|until| until.min(at));
    }

    /// Something was freed: it is worth an attempt now.
    pub(crate) fn retry_now(&mut self) {
        self.until = None;
    }

    /// Until when to leave it alone, if that is still to come.
    pub(crate) fn until(&mut self, now: Instant) -> Option<Instant> {
        self.until = self.until.filter(|until| *until > now);
        self.until
    }

    /// Nobody is waiting any more: how often it had failed.
    pub(crate) fn recovered(&mut self) -> Option<u32> {
        self.delay = Duration::ZERO;
        match std::mem::take(&mut self.failures) {
            0 => None,
            failures => Some(failures),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_classes() {
        assert_eq!(AcceptErrorClass::of(Errno::AGAIN), AcceptErrorClass::Empty);
        assert_eq!(
            AcceptErrorClass::of(Errno::CONNABORTED),
            AcceptErrorClass::Retry
        );
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(AcceptErrorClass::of(errno), AcceptErrorClass::Exhausted);
        }
        for errno in [Errno::BADF, Errno::INVAL, Errno::NOTSOCK] {
            assert_eq!(AcceptErrorClass::of(errno), AcceptErrorClass::Fatal);
        }
    }

    #[test]
    fn back_off_grows_and_an_episode_is_told_once() {
        let mut back_off = BackOff::default();
        let start = Instant::now();
        assert!(back_off.failed(start));
        assert_eq!(back_off.until(start), Some(start + FIRST));
        let told = (1..20)
            .filter(|n| back_off.failed(start + FIRST * *n))
            .count();
        assert_eq!(told, 0);
        assert_eq!(back_off.delay, LONGEST);
        assert_eq!(back_off.recovered(), Some(20));
        assert_eq!(back_off.recovered(), None);
        assert!(
            !back_off.failed(start + Duration::from_secs(1)),
            "the same episode"
        );
        assert!(
            back_off.failed(start + Duration::from_secs(60)),
            "a new one"
        );
    }
}
