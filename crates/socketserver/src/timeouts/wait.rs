//! The time limits of one wait for a peer.

use std::io;
use std::time::{Duration, Instant};

use super::MinRate;

/// The limits of one wait for the peer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Maximum duration from the start of the wait, regardless of the other direction.
    pub(crate) wait: Option<Duration>,
    /// Maximum time since the start of the wait or the last byte in either direction.
    pub(crate) idle: Option<Duration>,
    /// Time at which the wait ends in any case.
    pub(crate) deadline: Option<Instant>,
    /// Minimum rate at which the peer must read while the send buffer is full.
    pub(crate) rate: Option<MinRate>,
}

/// A wait in progress. Its end stays the same across interruptions.
#[derive(Debug)]
pub(crate) struct Wait {
    /// Last reading of the clock. A wait without limits never reads the clock.
    now: Option<Instant>,
    end: Option<Instant>,
    idle_end: Option<Instant>,
    idle: Option<Duration>,
    moved: u64,
}

impl Wait {
    /// Begins a wait; `moved` is the number of bytes that the connection has transferred so far.
    pub(crate) fn start(limits: Limits, moved: u64) -> io::Result<Self> {
        let Limits {
            wait,
            idle,
            deadline,
            rate,
        } = limits;
        if wait.is_none() && idle.is_none() && deadline.is_none() && rate.is_none() {
            return Ok(Self {
                now: None,
                end: None,
                idle_end: None,
                idle: None,
                moved,
            });
        }
        let now = Instant::now();
        if limits.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(timed_out());
        }
        let wait_end = limits.wait.and_then(|wait| now.checked_add(wait));
        Ok(Self {
            now: Some(now),
            end: earliest(limits.deadline, wait_end),
            idle_end: limits.idle.and_then(|idle| now.checked_add(idle)),
            idle: limits.idle,
            moved,
        })
    }

    /// Returns the last reading of the clock.
    pub(crate) fn clock(&self) -> Option<Instant> {
        self.now
    }

    /// Returns the end of the wait if no byte is transferred.
    pub(crate) fn until(&self) -> Option<Instant> {
        earliest(self.end, self.idle_end)
    }

    /// Returns the time left at the last reading of the clock.
    pub(crate) fn left(&self) -> Option<Duration> {
        Some(self.until()?.saturating_duration_since(self.now?))
    }

    /// Checks the limits after an interruption or a timer. Returns an error if a limit is reached.
    pub(crate) fn check(&mut self, moved: u64) -> io::Result<()> {
        if self.until().is_none() {
            return Ok(());
        }
        let now = Instant::now();
        self.now = Some(now);
        if self.end.is_some_and(|end| end <= now) {
            return Err(timed_out());
        }
        if self.idle_end.is_some_and(|end| end <= now) {
            if moved == self.moved {
                return Err(timed_out());
            }
            self.moved = moved;
            self.idle_end = self.idle.and_then(|idle| now.checked_add(idle));
        }
        Ok(())
    }
}

pub(crate) fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}

pub(crate) fn timed_out() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the wait for the peer went past the timeout",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn byte_in_the_other_direction_extends_only_the_idle_limit() {
        let idle = Limits {
            idle: Some(MS),
            ..Limits::default()
        };
        let mut wait = Wait::start(idle, 0).unwrap();
        std::thread::sleep(2 * MS);
        wait.check(1).unwrap();
        std::thread::sleep(2 * MS);
        assert_eq!(wait.check(1).unwrap_err().kind(), io::ErrorKind::TimedOut);

        let read = Limits {
            wait: Some(MS),
            ..idle
        };
        let mut wait = Wait::start(read, 0).unwrap();
        std::thread::sleep(2 * MS);
        assert_eq!(wait.check(1).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn past_deadline_fails_at_once() {
        let limits = Limits {
            deadline: Some(Instant::now()),
            ..Limits::default()
        };
        assert_eq!(
            Wait::start(limits, 0).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }
}
