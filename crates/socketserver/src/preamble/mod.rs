//! The preamble of a connection: the PROXY header and the TLS handshake, before the handler exists.
//! The worker that serves the connection runs the preamble.
//!
//! Each step has its own deadline, reads no byte of the next step, and ends with success or with
//! the end reason of the request. A step processes the bytes that have arrived and never waits. If
//! a step needs more bytes, the request is suspended, so that a silent peer occupies neither a pool
//! thread nor a stack. The accept loop takes no part.

#[cfg(feature = "proxy")]
mod proxy;
#[cfg(feature = "tls")]
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "proxy")]
pub use proxy::{ProxyHeader, ProxyHeaderError, ProxyProtocol};
#[cfg(feature = "tls")]
pub use tls::TlsHandshakeError;

use crate::admission::{AdmissionControl, PeerPermit};
use crate::server::{Outcome, RequestGuard};
#[cfg(feature = "tls")]
use crate::user_code::catch_panic;
use crate::{Address, Connection, Rejection};

/// The preamble steps of a server, and the message for rejected clients.
#[derive(Debug)]
pub(crate) struct PreambleConfig {
    #[cfg(feature = "proxy")]
    pub(crate) proxy: Option<ProxyProtocol>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<crate::Tls>,
    pub(crate) rejection_message: Arc<[u8]>,
}

impl PreambleConfig {
    /// Returns true if a worker will learn the client's address from a PROXY header.
    pub(crate) fn names_client_of(&self, peer: &Address) -> bool {
        #[cfg(feature = "proxy")]
        if let Some(proxy) = &self.proxy {
            return proxy.trusts(peer);
        }
        let _ = peer;
        false
    }

    /// Returns true if a worker may reject this peer before the handler exists.
    pub(crate) fn may_refuse(&self, peer: &Address) -> bool {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return true;
        }
        self.names_client_of(peer)
    }

    /// Applies admission control to the peer's address at the time of the accept.
    pub(crate) fn admit(
        &self,
        peer: &Address,
        admission: &Arc<AdmissionControl>,
    ) -> Result<Option<PeerPermit>, Rejection> {
        #[cfg(feature = "proxy")]
        if self.names_client_of(peer) {
            return admission.admit_proxy(peer).map(|()| None);
        }
        admission.admit(peer)
    }

    /// Prepares state that a forked child inherits and cannot renew for later children.
    pub(crate) fn prepare_fork(&self) {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            // The ticketer may be application code.
            let _ = catch_panic(|| tls.prepare_fork());
        }
    }

    /// Returns the message for a client that is rejected for this reason.
    pub(crate) fn notice(&self, rejection: &Rejection) -> &[u8] {
        // A client that expects TLS cannot read a plain message.
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return &[];
        }
        if rejection.is_told() {
            &self.rejection_message
        } else {
            &[]
        }
    }
}

/// The progress of one connection within the preamble.
#[derive(Default)]
pub struct PreambleState {
    #[cfg(feature = "proxy")]
    proxy_header: proxy::ProxyHeaderStep,
    #[cfg(feature = "tls")]
    handshake: tls::TlsHandshakeStep,
}

/// The result of running the preamble on the bytes received so far.
#[derive(Debug)]
pub enum PreambleProgress {
    /// The preamble is complete.
    Complete,
    Incomplete {
        /// Time at which the preamble runs again, even if no byte has arrived.
        until: Option<Instant>,
        /// True if the client has not sent a byte yet.
        has_sent_nothing: bool,
    },
}

impl fmt::Debug for PreambleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreambleState").finish_non_exhaustive()
    }
}

impl PreambleState {
    /// Runs all steps as far as the received bytes allow.
    pub(crate) fn take(
        &mut self,
        conn: &mut Connection,
        record: &mut RequestGuard,
    ) -> Result<PreambleProgress, Outcome> {
        #[cfg(feature = "proxy")]
        if let incomplete @ PreambleProgress::Incomplete { .. } =
            self.proxy_header.advance(conn, record)?
        {
            return Ok(incomplete);
        }
        #[cfg(feature = "tls")]
        if let incomplete @ PreambleProgress::Incomplete { .. } =
            self.handshake.advance(conn, record)?
        {
            return Ok(incomplete);
        }
        let _ = (self, conn, record);
        Ok(PreambleProgress::Complete)
    }
}

/// Returns true if the deadline has passed.
#[cfg(any(feature = "proxy", feature = "tls"))]
fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| until <= Instant::now())
}
