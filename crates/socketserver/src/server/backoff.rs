//! The classes of accept errors, and the delay after each.

use std::time::{Duration, Instant};

use rustix::io::Errno;

/// The reaction to an error of `accept(2)` or `recvfrom(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptErrorClass {
    /// No request is waiting.
    Empty,
    /// The error concerns one client that has disconnected: accept the next.
    Retry,
    /// The process or the system lacks a resource: an immediate retry would spin.
    Exhausted,
    /// The descriptor is no listener: a retry cannot succeed.
    Fatal,
}

impl AcceptErrorClass {
    pub(crate) fn of(errno: Errno) -> Self {
        match errno {
            Errno::AGAIN => Self::Empty,
            // accept(2): pending errors of the new socket; "treat them like EAGAIN by retrying".
            // The last two are caused by earlier UDP replies.
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

/// A delay that grows from 5 ms to 1 s while attempts fail.
#[derive(Debug, Default)]
pub(crate) struct BackOff {
    delay: Duration,
    until: Option<Instant>,
    last_failure: Option<Instant>,
    failures: u32,
}

const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(1);
/// Failures that are closer together than this belong to one episode, which is reported once.
const EPISODE: Duration = Duration::from_secs(10);

impl BackOff {
    /// Counts a failure. Returns true if it begins an episode.
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

    /// Moves the next attempt forward to `at`, if it is later.
    pub(crate) fn no_later_than(&mut self, at: Instant) {
        self.until = self.until.map(|until| until.min(at));
    }

    /// Allows an attempt now, because a resource was freed.
    pub(crate) fn retry_now(&mut self) {
        self.until = None;
    }

    /// Returns the time of the next attempt, if it is in the future.
    pub(crate) fn until(&mut self, now: Instant) -> Option<Instant> {
        self.until = self.until.filter(|until| *until > now);
        self.until
    }

    /// Ends the episode, because no client waits any more. Returns the number of failures.
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
    fn each_errno_has_its_class() {
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
    fn backoff_grows_and_an_episode_is_reported_once() {
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
