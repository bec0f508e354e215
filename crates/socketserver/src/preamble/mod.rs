//! What happens on a connection before there is a handler for it, in the worker that serves it:
//! whoever speaks first, and not the handler's language, is heard here.
//!
//! Each step has a deadline of its own, reads nothing that belongs to the next one, and ends well
//! or with the [`End`] of the request. It takes what has arrived and never waits: where more is
//! needed the request pauses, so that a silent peer holds neither a thread of a pool nor a stack. The
//! accept loop takes no part in it.

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

/// The steps that a server wants, and what it says to those who do not get through them.
#[derive(Debug)]
pub(crate) struct PreambleConfig {
    #[cfg(feature = "proxy")]
    pub(crate) proxy: Option<ProxyProtocol>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<crate::Tls>,
    pub(crate) rejection_message: Arc<[u8]>,
}

impl PreambleConfig {
    /// Whether a worker will learn more about who this peer is.
    pub(crate) fn names_client_of(&self, peer: &Address) -> bool {
        #[cfg(feature = "proxy")]
        if let Some(proxy) = &self.proxy {
            return proxy.trusts(peer);
        }
        let _ = peer;
        false
    }

    /// Whether a worker may refuse this peer before there is a handler.
    pub(crate) fn may_refuse(&self, peer: &Address) -> bool {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return true;
        }
        self.names_client_of(peer)
    }

    /// Decides about a peer with what is known when it is accepted.
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

    /// Makes ready what a child takes over from this process, and cannot make for the children after it.
    pub(crate) fn prepare_fork(&self) {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            // A ticketer may be the application's.
            let _ = catch_panic(|| tls.prepare_fork());
        }
    }

    /// What somebody is told who is turned away for this.
    pub(crate) fn notice(&self, rejection: &Rejection) -> &[u8] {
        // A client that expects TLS could not read it.
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

/// How far one connection has got.
#[derive(Default)]
pub struct PreambleState {
    #[cfg(feature = "proxy")]
    proxy_header: proxy::ProxyHeaderStep,
    #[cfg(feature = "tls")]
    handshake: tls::TlsHandshakeStep,
}

/// What has been heard of a peer so far.
#[derive(Debug)]
pub enum PreambleProgress {
    /// All that comes before the handler.
    Complete,
    Incomplete {
        /// When it is to be heard again, whatever has arrived by then.
        until: Option<Instant>,
        /// There is nothing yet.
        has_sent_nothing: bool,
    },
}

impl fmt::Debug for PreambleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps").finish_non_exhaustive()
    }
}

impl PreambleState {
    /// Takes all the steps that can be taken with what has arrived.
    pub(crate) fn take(
        &mut self,
        conn: &mut Connection,
        record: &mut RequestGuard,
    ) -> Result<PreambleProgress, Outcome> {
        #[cfg(feature = "proxy")]
        if let part @ PreambleProgress::Incomplete { .. } =
            self.proxy_header.advance(conn, record)?
        {
            return Ok(part);
        }
        #[cfg(feature = "tls")]
        if let part @ PreambleProgress::Incomplete { .. } = self.handshake.advance(conn, record)? {
            return Ok(part);
        }
        let _ = (self, conn, record);
        Ok(PreambleProgress::Complete)
    }
}

/// Whether what is missing comes too late.
#[cfg(any(feature = "proxy", feature = "tls"))]
fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| until <= Instant::now())
}
