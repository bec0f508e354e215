//! How long a connection may make somebody wait.

mod rate;
mod wait;

use std::io;
use std::time::Duration;

pub use rate::MinRate;
pub(crate) use rate::SendRateMeter;

pub(crate) use wait::{Limits, Wait, earliest, timed_out};

/// The limits on waiting for a peer; `None` lifts one. Reaching one fails the read or write with
/// [`io::ErrorKind::TimedOut`].
///
/// | Limit | Default | Bounds |
/// |---|---|---|
/// | `first_byte` | 60 s | reading, from accept until the peer has said anything at all |
/// | `idle` | 5 min | a read that waits while neither direction moves a byte |
/// | `read` | none | any single read that waits, whatever the other direction does |
/// | `receive_rate` | 240 bytes/s after 30 s | the rest of a message whose beginning has arrived |
/// | `write` | 60 s | any single write that waits for room |
/// | `send_rate` | 240 bytes/s after 30 s | all waiting for room, taken together |
/// | `request` | none | the whole request, from accept to its end: no trickle of bytes extends it |
///
/// For a handler that reads and writes by itself, `idle` and `read` say the same. They differ
/// when a [`WriteHalf`](crate::WriteHalf) sends from another thread: then a connection that is silent
/// but written to is not idle. Such a wait ends between one and two `idle` periods after the last
/// byte.
///
/// A byte that was only handed to the system does not keep a vanished peer alive: over TCP, what is
/// sent has to be confirmed within three times `write` and no less than 10 s, or what
/// [`user_timeout`](crate::Builder::user_timeout) says.
///
/// The two rates cut those who trickle, and nobody who is silent between messages. Where a message
/// begins and ends is known to `read_line`, `read_until` and `read_exact`, to
/// `framing::Framed` if it [is told to](crate::Connection::begin_message), and to a handler that
/// says it itself. A handler that takes each read as it comes has no messages; there, `request`
/// bounds what a peer can hold.
///
/// For datagrams there is one wait, that of a reply for room in a full socket. `write` bounds it,
/// and is 1 s by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// The longest wait for a peer that has not said anything yet.
    pub first_byte: Option<Duration>,
    /// The longest silence in both directions.
    pub idle: Option<Duration>,
    /// The longest wait of one read.
    pub read: Option<Duration>,
    /// How fast a message that has begun must arrive.
    pub receive_rate: Option<MinRate>,
    /// The longest wait of one write.
    pub write: Option<Duration>,
    /// How fast the peer must read what is sent to it.
    pub send_rate: Option<MinRate>,
    /// The longest life of one request.
    pub request: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_byte: Some(Duration::from_secs(60)),
            idle: Some(Duration::from_secs(300)),
            read: None,
            receive_rate: Some(MinRate::DEFAULT),
            write: Some(Duration::from_secs(60)),
            send_rate: Some(MinRate::DEFAULT),
            request: None,
        }
    }
}

impl Timeouts {
    /// No limits at all. A silent peer then keeps its handler for as long as it likes.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self {
            first_byte: None,
            idle: None,
            read: None,
            receive_rate: None,
            write: None,
            send_rate: None,
            request: None,
        }
    }

    /// Sets the longest wait for the first byte.
    #[must_use]
    pub const fn first_byte(mut self, limit: Option<Duration>) -> Self {
        self.first_byte = limit;
        self
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

    /// Sets how fast a message that has begun must arrive.
    #[must_use]
    pub const fn receive_rate(mut self, rate: Option<MinRate>) -> Self {
        self.receive_rate = rate;
        self
    }

    /// Sets the longest wait of one write.
    #[must_use]
    pub const fn write(mut self, limit: Option<Duration>) -> Self {
        self.write = limit;
        self
    }

    /// Sets how fast the peer must read what is sent to it.
    #[must_use]
    pub const fn send_rate(mut self, rate: Option<MinRate>) -> Self {
        self.send_rate = rate;
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
            (self.first_byte, "first_byte"),
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

#[cfg(test)]
mod tests {
    use super::*;

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
