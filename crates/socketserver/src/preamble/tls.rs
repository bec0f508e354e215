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

/// The reason of a failed TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsHandshakeError {
    /// The [maximum number](crate::Tls::max_handshakes) of concurrent handshakes was reached.
    TooMany,
    /// The handshake exceeded its [time limit](crate::Tls::handshake_timeout).
    TimedOut,
    /// The client sent bytes that are not TLS, or offered no supported version or cipher suite.
    Protocol,
    /// The client presented no certificate, or a certificate that no trusted authority has issued.
    Certificate,
    /// The client ended the handshake with an alert. For example, it does not trust the issuer of
    /// the server's certificate.
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

    /// Returns the error with this number. A forked child reports the number to its parent.
    pub(crate) fn numbered(number: i32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    fn of(error: &io::Error) -> Option<Self> {
        use rustls::Error::{AlertReceived, InvalidCertificate, NoCertificatesPresented};
        match error.kind() {
            // `WouldBlock` is an error only after the deadline.
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

/// The step that performs the TLS handshake.
#[derive(Default)]
pub(super) struct TlsHandshakeStep {
    since: Option<Instant>,
    handshake: Option<tls::Handshake>,
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
        let limit = since.checked_add(tls.time_for_handshake());
        let until = earliest(limit, conn.deadline());
        match self.attempt(tls, conn, record, until) {
            Ok(session) => {
                conn.socket().encrypt(session);
                Ok(PreambleProgress::Complete)
            }
            Err(error) if error.kind() == WouldBlock && !is_over(until) => {
                Ok(PreambleProgress::Incomplete {
                    until,
                    has_sent_nothing: self.handshake.is_none(),
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
        let mut handshake = match self.handshake.take() {
            Some(handshake) => handshake,
            // A client that has not sent a byte yet does not count towards `max_handshakes`.
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
                self.handshake = Some(handshake);
                Err(error)
            }
        }
    }
}

/// Returns the holder of a handshake slot: its peer, and the function that displaces it.
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
    if let Some(reason) = conn.socket().cut() {
        return Outcome::Ended(reason.into());
    }
    match TlsHandshakeError::of(error) {
        Some(error) => Outcome::Rejected(Rejection::Tls(error)),
        None => Outcome::Ended(EndReason::Disconnected),
    }
}
