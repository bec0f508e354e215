//! The kinds of failed requests. Failures are counted and do not end the measurement.

use std::io;

use rustix::io::Errno;

/// The kind of a failure. The names are part of the `--json` output and must stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Refused,
    ConnectTimeout,
    NoPort,
    Connect,
    Tls,
    Reset,
    ClosedEarly,
    Timeout,
    WrongAnswer,
    Other,
}

impl Kind {
    pub(super) const ALL: [Self; 10] = [
        Self::Refused,
        Self::ConnectTimeout,
        Self::NoPort,
        Self::Connect,
        Self::Tls,
        Self::Reset,
        Self::ClosedEarly,
        Self::Timeout,
        Self::WrongAnswer,
        Self::Other,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Refused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::NoPort => "no_local_port",
            Self::Connect => "connect_failed",
            Self::Tls => "tls_failed",
            Self::Reset => "reset",
            Self::ClosedEarly => "closed_early",
            Self::Timeout => "timeout",
            Self::WrongAnswer => "wrong_answer",
            Self::Other => "other",
        }
    }

    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Refused => "connection refused: no server listens there",
            Self::ConnectTimeout => "not connected within --timeout",
            Self::NoPort => {
                "no local port is free: the ports of closed connections stay reserved for a minute"
            }
            Self::Connect => "cannot connect",
            Self::Tls => "TLS failed",
            Self::Reset => "reset by the server",
            Self::ClosedEarly => "closed by the server before the answer was complete",
            Self::Timeout => "no answer within --timeout",
            Self::WrongAnswer => "not the answer that was expected",
            Self::Other => "other",
        }
    }
}

/// A failure, with details if the kind does not describe it completely.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) detail: Option<String>,
}

impl Failure {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: Some(detail.into()),
        }
    }

    /// Returns the failure for an error of connect(2).
    pub(super) fn connecting(errno: Errno) -> Self {
        match errno {
            Errno::CONNREFUSED => Kind::Refused.into(),
            Errno::TIMEDOUT => Kind::ConnectTimeout.into(),
            Errno::ADDRNOTAVAIL => Kind::NoPort.into(),
            Errno::CONNRESET => Kind::Reset.into(),
            errno => Self::new(Kind::Connect, io::Error::from(errno).to_string()),
        }
    }
}

impl From<Kind> for Failure {
    fn from(kind: Kind) -> Self {
        Self { kind, detail: None }
    }
}

impl From<Errno> for Failure {
    /// Returns the failure for an error on a connected socket.
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::CONNRESET | Errno::PIPE => Kind::Reset.into(),
            // Datagram sockets report a missing server only here: udp(7), unix(7).
            Errno::CONNREFUSED => Kind::Refused.into(),
            errno => Self::new(Kind::Other, io::Error::from(errno).to_string()),
        }
    }
}
