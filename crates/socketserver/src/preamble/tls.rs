//! The TLS handshake.

use std::fmt;
use std::io::{
    self,
    ErrorKind::{UnexpectedEof, WouldBlock},
};
use std::sync::Arc;
use std::time::Instant;

use super::{PreambleProgress, is_over};
use crate::admission::PeerKey;
use crate::server::{Outcome, RequestGuard};
use crate::socket::{CancelReason, Socket};
use crate::timeouts::{Limits, earliest};
use crate::tls::Holder;
use crate::{Connection, EndReason, Rejection, Tls, tls};

/// Why a TLS handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsHandshakeError {
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

impl TlsHandshakeError {
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
            // It was to be over by now.
            io::ErrorKind::TimedOut | WouldBlock => Some(Self::TimedOut),
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

impl fmt::Display for TlsHandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooMany => "too many handshakes at once",
            Self::TimedOut => "it took too long",
            Self::Protocol => "the client sent no TLS, or no version or cipher suite is in common",
            Self::Certificate => "the client's certificate is missing or not trusted",
            Self::RefusedByPeer => {
                "the client sent an alert; it may not trust the server's certificate"
            }
        })
    }
}

/// Agreeing with the peer upon how to encrypt.
#[derive(Default)]
pub(super) struct TlsHandshakeStep {
    since: Option<Instant>,
    under_way: Option<tls::Handshake>,
}

impl TlsHandshakeStep {
    pub(super) fn advance(
        &mut self,
        conn: &Connection,
        record: &RequestGuard,
    ) -> Result<PreambleProgress, Outcome> {
        let Some(tls) = &record.shared().preamble.tls else {
            return Ok(PreambleProgress::Complete);
        };
        let since = *self.since.get_or_insert_with(Instant::now);
        let own = since.checked_add(tls.time_for_handshake());
        let until = earliest(own, conn.deadline());
        match self.attempt(tls, conn, record, until) {
            Ok(session) => {
                conn.socket().encrypt(session);
                Ok(PreambleProgress::Complete)
            }
            Err(error) if error.kind() == WouldBlock && !is_over(until) => {
                Ok(PreambleProgress::Incomplete {
                    until,
                    has_sent_nothing: self.under_way.is_none(),
                })
            }
            Err(error) => Err(failed(conn, &error)),
        }
    }

    fn attempt(
        &mut self,
        tls: &Tls,
        conn: &Connection,
        record: &RequestGuard,
        until: Option<Instant>,
    ) -> io::Result<tls::Session> {
        let socket: &Socket = conn.socket();
        let limits = Limits {
            deadline: until,
            ..Limits::default()
        };
        let mut handshake = match self.under_way.take() {
            Some(handshake) => handshake,
            // Who is silent is no work, and takes no place among those who shake hands.
            None if socket.try_peek(&mut [0])? == 0 => return Err(UnexpectedEof.into()),
            None => {
                let handshake = tls.begin(holder(conn, record))?;
                if handshake.has_displaced() {
                    record.shared().count_displaced("TLS handshakes");
                }
                handshake
            }
        };
        match handshake.advance(socket, limits) {
            Ok(()) => Ok(handshake.into_session()),
            Err(error) => {
                self.under_way = Some(handshake);
                Err(error)
            }
        }
    }
}

/// Who has the place of a handshake, and how it is cut for another one.
fn holder(conn: &Connection, record: &RequestGuard) -> Holder {
    let socket = Arc::downgrade(conn.socket());
    let cut = move || {
        if let Some(socket) = socket.upgrade() {
            socket.cancel(CancelReason::Displaced);
        }
    };
    Holder {
        peer: PeerKey::of_peer(conn.peer_addr()),
        cut: record.shared().displaces().then(|| Box::new(cut) as _),
    }
}

fn failed(conn: &Connection, error: &io::Error) -> Outcome {
    tracing::debug!(id = %conn.id(), peer = %conn.peer_addr(), %error, "no TLS");
    if let Some(cut) = conn.socket().cut() {
        return Outcome::Ended(cut.into());
    }
    match TlsHandshakeError::of(error) {
        Some(fault) => Outcome::Rejected(Rejection::Tls(fault)),
        None => Outcome::Ended(EndReason::Disconnected),
    }
}
