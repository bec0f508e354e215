//! The TLS handshake.

use std::fmt;
use std::io;
use std::time::Instant;

use crate::server::{End, Record};
use crate::timeouts::{Limits, earliest};
use crate::{Connection, Refusal};

/// Why a TLS handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsFault {
    /// As many were under way [as may be](crate::Tls::max_handshakes).
    TooMany,
    /// It was not over [in time](crate::Tls::handshake_timeout).
    TimedOut,
    /// The client has sent something that is no TLS, or of no version or kind that is spoken here.
    Protocol,
    /// The client has shown no certificate, or one that nobody vouches for.
    Certificate,
    /// The client does not want to go on: it may not know who issued the server's certificate.
    RefusedByPeer,
}

impl TlsFault {
    const ALL: [Self; 5] = [
        Self::TooMany,
        Self::TimedOut,
        Self::Protocol,
        Self::Certificate,
        Self::RefusedByPeer,
    ];

    /// How a child tells its parent.
    pub(crate) fn numbered(number: i32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    fn of(error: &io::Error) -> Option<Self> {
        use rustls::Error::{AlertReceived, InvalidCertificate, NoCertificatesPresented};
        match error.kind() {
            io::ErrorKind::TimedOut => Some(Self::TimedOut),
            io::ErrorKind::ConnectionRefused => Some(Self::TooMany),
            io::ErrorKind::InvalidData => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
                Some(match inner {
                    Some(InvalidCertificate(_) | NoCertificatesPresented) => Self::Certificate,
                    Some(AlertReceived(_)) => Self::RefusedByPeer,
                    _ => Self::Protocol,
                })
            }
            _ => None,
        }
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooMany => "too many handshakes at once",
            Self::TimedOut => "it took too long",
            Self::Protocol => "no TLS that is spoken here",
            Self::Certificate => "no certificate that is good here",
            Self::RefusedByPeer => "the client refused",
        })
    }
}

/// Agrees with the peer upon how to encrypt.
pub(super) fn shake_hands(conn: &Connection, record: &Record) -> Result<(), End> {
    let Some(tls) = &record.shared().preamble.tls else {
        return Ok(());
    };
    let own = Instant::now().checked_add(tls.time_for_handshake());
    let limits = Limits {
        deadline: earliest(own, conn.deadline()),
        ..Limits::default()
    };
    let session = tls.accept(&**conn.socket(), limits).map_err(|error| {
        tracing::debug!(id = %conn.id(), peer = %conn.peer_addr(), %error, "no TLS");
        if let Some(cut) = conn.socket().cut() {
            return End::Ended(cut.into());
        }
        match TlsFault::of(&error) {
            Some(fault) => End::Refused(Refusal::Tls(fault)),
            None => End::Ended(crate::EndReason::PeerGone),
        }
    })?;
    conn.socket().encrypt(session);
    Ok(())
}
