//! One wait for a peer: when it has to end.

use std::io;
use std::time::{Duration, Instant};

use super::MinRate;

/// What one wait for the peer may take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// From the start of the wait, however the other direction fares.
    pub(crate) wait: Option<Duration>,
    /// From the start of the wait or the last byte in either direction.
    pub(crate) idle: Option<Duration>,
    /// At this point in time, whatever happens.
    pub(crate) deadline: Option<Instant>,
    /// How fast the peer has to take what is sent, while there is no room for more.
    pub(crate) rate: Option<MinRate>,
}

/// One wait in progress: when it must end, kept across interruptions.
#[derive(Debug)]
pub(crate) struct Wait {
    /// When the clock was last read; a wait without limits never reads it.
    now: Option<Instant>,
    end: Option<Instant>,
    idle_end: Option<Instant>,
    idle: Option<Duration>,
    moved: u64,
}

impl Wait {
    /// Begins a wait; `moved` is how many bytes the connection has moved so far.
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

    /// When the clock was last read.
    pub(crate) fn clock(&self) -> Option<Instant> {
        self.now
    }

    /// When the wait ends if nothing happens.
    pub(crate) fn until(&self) -> Option<Instant> {
        earliest(self.end, self.idle_end)
    }

    /// How long that was when the clock was last read.
    pub(crate) fn left(&self) -> Option<Duration> {
        Some(self.until()?.saturating_duration_since(self.now?))
    }

    /// The wait was interrupted, or a timer ran out: an error if the time is over.
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
        "the peer kept us waiting past the timeout",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_byte_in_the_other_direction_extends_idle_but_no_other_limit() {
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
    fn a_deadline_that_has_passed_fails_at_once() {
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
