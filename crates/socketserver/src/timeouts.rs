//! How long a connection may make somebody wait.

use std::io;
use std::time::{Duration, Instant};

/// The limits on waiting for a peer; `None` lifts one. Reaching one fails the read or write with
/// [`io::ErrorKind::TimedOut`].
///
/// | Limit | Default | Bounds |
/// |---|---|---|
/// | `idle` | 5 min | a read that waits while neither direction moves a byte |
/// | `read` | none | any single read that waits, whatever the other direction does |
/// | `write` | 60 s | any single write that waits for room |
/// | `request` | none | the whole request, from accept to its end: no trickle of bytes extends it |
///
/// For a handler that reads and writes by itself, `idle` and `read` say the same. They differ
/// when a [`Writer`](crate::Writer) sends from another thread: then a connection that is silent
/// but written to is not idle. Such a wait ends between one and two `idle` periods after the last
/// byte.
///
/// For datagrams there is one wait, that of a reply for room in a full socket. `write` bounds it,
/// and is 1 s by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// The longest silence in both directions.
    pub idle: Option<Duration>,
    /// The longest wait of one read.
    pub read: Option<Duration>,
    /// The longest wait of one write.
    pub write: Option<Duration>,
    /// The longest life of one request.
    pub request: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            idle: Some(Duration::from_secs(300)),
            read: None,
            write: Some(Duration::from_secs(60)),
            request: None,
        }
    }
}

impl Timeouts {
    /// No limits at all. A silent peer then keeps its handler for as long as it likes.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            idle: None,
            read: None,
            write: None,
            request: None,
        }
    }

    /// Sets the longest silence in both directions.
    #[must_use]
    pub const fn idle(mut self, limit: Option<Duration>) -> Self {
        self.idle = limit;
        self
    }

    /// Sets the longest wait of one read.
    #[must_use]
    pub const fn read(mut self, limit: Option<Duration>) -> Self {
        self.read = limit;
        self
    }

    /// Sets the longest wait of one write.
    #[must_use]
    pub const fn write(mut self, limit: Option<Duration>) -> Self {
        self.write = limit;
        self
    }

    /// Sets the longest life of one request.
    #[must_use]
    pub const fn request(mut self, limit: Option<Duration>) -> Self {
        self.request = limit;
        self
    }

    /// The first limit that is zero, by name.
    pub(crate) fn zero(&self) -> Option<&'static str> {
        [
            (self.idle, "idle"),
            (self.read, "read"),
            (self.write, "write"),
            (self.request, "request"),
        ]
        .into_iter()
        .find_map(|(limit, name)| limit.is_some_and(|l| l.is_zero()).then_some(name))
    }
}

/// Refuses a limit of zero, which would mean "fail every wait" and is nearly always a mistake.
pub(crate) fn nonzero(limit: Option<Duration>) -> io::Result<Option<Duration>> {
    if limit.is_some_and(|l| l.is_zero()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a timeout of zero would fail every wait: pass None for no limit",
        ));
    }
    Ok(limit)
}

/// What one wait for the peer may take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// From the start of the wait, however the other direction fares.
    pub(crate) wait: Option<Duration>,
    /// From the start of the wait or the last byte in either direction.
    pub(crate) idle: Option<Duration>,
    /// At this point in time, whatever happens.
    pub(crate) deadline: Option<Instant>,
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
    pub(crate) fn begin(limits: Limits, moved: u64) -> io::Result<Self> {
        if limits.wait.is_none() && limits.idle.is_none() && limits.deadline.is_none() {
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

    /// When the wait ends if nothing happens.
    pub(crate) fn until(&self) -> Option<Instant> {
        earliest(self.end, self.idle_end)
    }

    /// How long that was when the clock was last read.
    pub(crate) fn left(&self) -> Option<Duration> {
        Some(self.until()?.saturating_duration_since(self.now?))
    }

    /// The wait was interrupted, or a timer ran out: an error if the time is over.
    pub(crate) fn expired(&mut self, moved: u64) -> io::Result<()> {
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
        let mut wait = Wait::begin(idle, 0).unwrap();
        std::thread::sleep(2 * MS);
        wait.expired(1).unwrap();
        std::thread::sleep(2 * MS);
        assert_eq!(wait.expired(1).unwrap_err().kind(), io::ErrorKind::TimedOut);

        let read = Limits {
            wait: Some(MS),
            ..idle
        };
        let mut wait = Wait::begin(read, 0).unwrap();
        std::thread::sleep(2 * MS);
        assert_eq!(wait.expired(1).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_deadline_that_has_passed_fails_at_once() {
        let limits = Limits {
            deadline: Some(Instant::now()),
            ..Limits::default()
        };
        assert_eq!(
            Wait::begin(limits, 0).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }

    #[test]
    fn zero_is_refused_by_name() {
        assert_eq!(
            Timeouts::default().write(Some(Duration::ZERO)).zero(),
            Some("write")
        );
        assert_eq!(Timeouts::default().zero(), None);
        assert!(nonzero(Some(Duration::ZERO)).is_err());
    }
}
