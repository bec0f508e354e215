//! Time limits and minimum rates of connections.

mod rate;
mod wait;

use std::io;
use std::time::Duration;

pub use rate::MinRate;
pub(crate) use rate::SendRateMeter;

pub(crate) use wait::{Limits, Wait, earliest, timed_out};

/// The limits on waiting for a peer. `None` removes a limit. A read or write that exceeds a limit
/// fails with [`io::ErrorKind::TimedOut`].
///
/// | Limit | Default | Bounds |
/// |---|---|---|
/// | `first_byte` | 60 s | reads, from accept until the peer's first byte |
/// | `idle` | 5 min | a read that waits while neither direction transfers a byte |
/// | `read` | none | the wait of each read, regardless of the other direction |
/// | `receive_rate` | 240 bytes/s after 30 s | the rest of a message whose beginning has arrived |
/// | `write` | 60 s | the wait of each write for room in the send buffer |
/// | `send_rate` | 240 bytes/s after 30 s | total time spent blocked in writes |
/// | `request` | none | the whole request, from accept to its end; traffic does not extend it |
///
/// `idle` and `read` are equivalent for a handler that reads and writes in turn. They differ if a
/// [`WriteHalf`](crate::WriteHalf) sends from another thread: a connection that receives nothing
/// but is written to is not idle. Such a read times out between one and two `idle` periods after
/// the last byte.
///
/// Bytes that are only queued in the kernel do not keep the connection to a vanished peer open.
/// Over TCP, the peer must acknowledge sent bytes within three times `write`, but no less than
/// 10 s. [`user_timeout`](crate::Builder::user_timeout) overrides this limit.
///
/// The two rates disconnect peers that trickle bytes. A peer that is silent between messages is not
/// affected. `read_line`, `read_until` and `read_exact` know where a message begins and ends.
/// `framing::Framed` does if its `with_receive_rate` is set, and a handler can
/// [mark messages](crate::Connection::begin_message) itself. A handler that processes each read
/// separately has no messages; `request` then bounds the time of a connection.
///
/// A UDP or Unix datagram has one wait: a reply that waits for room in a full socket. `write`
/// bounds that wait and defaults to 1 s for datagram servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// The maximum wait for the peer's first byte.
    pub first_byte: Option<Duration>,
    /// The maximum idle time in both directions.
    pub idle: Option<Duration>,
    /// The maximum wait of one read.
    pub read: Option<Duration>,
    /// The minimum rate at which a message that has begun must arrive.
    pub receive_rate: Option<MinRate>,
    /// The maximum wait of one write.
    pub write: Option<Duration>,
    /// The minimum rate at which the peer must read sent data.
    pub send_rate: Option<MinRate>,
    /// The maximum duration of one request.
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
    /// Returns timeouts without any limit. A silent peer can then occupy its handler indefinitely.
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

    /// Sets the maximum wait for the first byte. Defaults to 60 s.
    #[must_use]
    pub const fn first_byte(mut self, limit: Option<Duration>) -> Self {
        self.first_byte = limit;
        self
    }

    /// Sets the maximum idle time in both directions. Defaults to 5 min.
    #[must_use]
    pub const fn idle(mut self, limit: Option<Duration>) -> Self {
        self.idle = limit;
        self
    }

    /// Sets the maximum wait of one read. Defaults to `None`.
    #[must_use]
    pub const fn read(mut self, limit: Option<Duration>) -> Self {
        self.read = limit;
        self
    }

    /// Sets the minimum rate at which a message that has begun must arrive. Defaults to 240 bytes/s
    /// after 30 s.
    #[must_use]
    pub const fn receive_rate(mut self, rate: Option<MinRate>) -> Self {
        self.receive_rate = rate;
        self
    }

    /// Sets the maximum wait of one write. Defaults to 60 s.
    #[must_use]
    pub const fn write(mut self, limit: Option<Duration>) -> Self {
        self.write = limit;
        self
    }

    /// Sets the minimum rate at which the peer must read sent data. Defaults to 240 bytes/s after
    /// 30 s.
    #[must_use]
    pub const fn send_rate(mut self, rate: Option<MinRate>) -> Self {
        self.send_rate = rate;
        self
    }

    /// Sets the maximum duration of one request. Defaults to `None`.
    #[must_use]
    pub const fn request(mut self, limit: Option<Duration>) -> Self {
        self.request = limit;
        self
    }

    /// Returns the name of the first limit that is zero.
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

/// Rejects a limit of zero, which would fail every wait and is nearly always a mistake.
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
    fn zero_limit_is_reported_by_name() {
        assert_eq!(
            Timeouts::default().write(Some(Duration::ZERO)).zero(),
            Some("write")
        );
        assert_eq!(Timeouts::default().zero(), None);
        assert!(nonzero(Some(Duration::ZERO)).is_err());
    }
}
