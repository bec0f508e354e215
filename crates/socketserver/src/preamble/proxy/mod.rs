//! The PROXY protocol, versions 1 and 2: a proxy says who its client is, before anything else.
//!
//! Source of all facts here is
//! [the specification](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).

mod header;
mod length;
mod reader;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub use header::{ProxyHeader, ProxyHeaderError};

use super::{PreambleProgress, is_over};
use crate::server::{Outcome, RequestGuard};
use crate::timeouts::earliest;
use crate::{Address, BindError, Connection, EndReason, Network, Rejection};
use reader::{Fault, Reading};

/// Whom to believe about who a connection's client is: proxies that speak the
/// [PROXY protocol](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt), version 1 or 2,
/// such as HAProxy (`send-proxy`, `send-proxy-v2`), nginx (`proxy_protocol on`) and the load
/// balancers of clouds. See [`Builder::proxy_protocol`](crate::Builder::proxy_protocol).
///
/// * **Trusted peers** must begin with a header. One that does not is closed, before a handler is
///   made, and told as [`Rejection::ProxyHeader`]. If it closes without a word, as a check whether the
///   port is open does, it has just [gone](EndReason::PeerGone).
/// * **All others** are served as they are. What they send is the handler's, even if it looks like
///   a header: nobody can pretend to be somebody else.
/// * The header is read by the worker that serves the connection, before the handler's `setup`, and
///   up to its last byte only. While it is waited for it holds no thread of a pool and no stack; a
///   sequential server, a thread, or a child waits for it. It has to be complete within 5 s (see [`timeout`](Self::timeout)), and is no longer
///   than 107 bytes in version 1, and 16 and 4096 in version 2.
///
/// From then on [`Connection::peer_addr`], [`RequestInfo::peer`](crate::RequestInfo::peer), events and
/// logs have the client's address, [`Connection::local_addr`] has the one that the client connected
/// to, and [`Connection::proxy_addr`] has the proxy's. A header without addresses (`LOCAL`, as for
/// the proxy's own health checks; `UNKNOWN`) leaves the first two as they are.
///
/// **[`Admission`](crate::Admission)** is asked twice. When the proxy connects, its own address must
/// be let in by the rules, and the total rate counts. When the client is known, the rules and the
/// limits by peer are applied to it, and to nobody else: the proxy has as many connections as there
/// is room for. [`verify_request`](crate::Builder::verify_request) is called before, and sees the proxy.
///
/// Under [`Forking`](crate::Forking) the child learns of the client: in the parent,
/// [`ServerHandle::live`](crate::ServerHandle::live) and the event `Ended` show the proxy. Rules hold for
/// clients, but limits by peer cannot, as no child knows of the others: binding with both fails. A
/// set of limits by peer that comes later, by
/// [`set_admission`](crate::ServerHandle::set_admission), has no effect on clients of proxies there.
///
/// ```
/// use socketserver::{Connection, ProxyProtocol, ThreadingTcpServer, handler_fn};
/// use std::io::Write;
///
/// let server = ThreadingTcpServer::builder()
///     .proxy_protocol(ProxyProtocol::new().trust("10.0.0.0/24".parse()?))
///     .bind("127.0.0.1:0", handler_fn(|conn: &mut Connection| {
///         let (client, proxy) = (conn.peer_addr().clone(), conn.proxy_addr().cloned());
///         writeln!(conn, "{client} by {proxy:?}")?;
///         Ok(())
///     }))?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ProxyProtocol {
    networks: Vec<Network>,
    unix: bool,
    timeout: Duration,
}

/// The specification asks for at least 3 s, to cover one retransmission.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Default for ProxyProtocol {
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            unix: false,
            timeout: TIMEOUT,
        }
    }
}

impl ProxyProtocol {
    /// Nobody is trusted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts proxies at these addresses, too. Whoever can connect from there can pretend to be any
    /// client: name proxies, and not the networks that clients are in.
    #[must_use]
    pub fn trust(mut self, network: Network) -> Self {
        self.networks.push(network);
        self
    }

    /// Trusts whoever can connect to a Unix socket. Its [mode](crate::Builder::mode) says who can.
    #[must_use]
    pub fn trust_unix(mut self) -> Self {
        self.unix = true;
        self
    }

    /// How long a header may take, from the moment a worker waits for it; 5 s by default.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    pub(crate) fn trusts(&self, peer: &Address) -> bool {
        match peer {
            Address::Inet(peer) => self
                .networks
                .iter()
                .any(|network| network.contains(peer.ip())),
            Address::Unix(_) => self.unix,
        }
    }

    /// Refuses what cannot be meant, and what cannot be kept.
    pub(crate) fn check(&self, forks_and_counts_peers: bool) -> Result<(), BindError> {
        let reason = if self.networks.is_empty() && !self.unix {
            "it trusts nobody: name the proxies' addresses with trust, or use trust_unix"
        } else if self.timeout.is_zero() {
            "a timeout of zero would refuse every proxy"
        } else if forks_and_counts_peers {
            "under the forking model, limits by peer cannot be kept for clients of a proxy, as each \
             child knows only its own: choose another model, or set these limits in the proxy"
        } else {
            return Ok(());
        };
        Err(BindError::BadOption {
            option: "proxy_protocol",
            reason: reason.into(),
        })
    }
}

/// A trusted proxy says who its client is, and then it is decided about the client.
#[derive(Default)]
pub(super) struct ProxyHeaderStep {
    since: Option<Instant>,
    reading: Reading,
}

impl ProxyHeaderStep {
    pub(super) fn advance(
        &mut self,
        conn: &mut Connection,
        record: &mut RequestGuard,
    ) -> Result<PreambleProgress, Outcome> {
        let shared = record.shared().clone();
        let Some(proxy) = &shared.preamble.proxy else {
            return Ok(PreambleProgress::Complete);
        };
        // Once it is introduced, it is the client whose address is known.
        if conn.proxy_header().is_some() || !proxy.trusts(conn.peer_addr()) {
            return Ok(PreambleProgress::Complete);
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let until = earliest(since.checked_add(proxy.timeout), conn.deadline());
        match self.reading.advance(conn.socket(), conn.peer_addr()) {
            Ok(Some(header)) => {
                introduce(header, conn, record).map(|()| PreambleProgress::Complete)
            }
            Ok(None) if is_over(until) => Err(Outcome::Rejected(Rejection::ProxyHeader(
                ProxyHeaderError::TimedOut,
            ))),
            Ok(None) => Ok(PreambleProgress::Incomplete {
                until,
                has_sent_nothing: !self.reading.has_begun(),
            }),
            Err(Fault::Bad(bad)) => Err(Outcome::Rejected(Rejection::ProxyHeader(bad))),
            Err(Fault::Gone) => Err(Outcome::Ended(match conn.socket().cut() {
                Some(cut) => cut.into(),
                None => EndReason::Disconnected,
            })),
        }
    }
}

fn introduce(
    header: ProxyHeader,
    conn: &mut Connection,
    record: &mut RequestGuard,
) -> Result<(), Outcome> {
    conn.set_proxied(header);
    if let Some(header) = conn.proxy_header() {
        record.set_proxied(conn.peer_addr(), header.proxy());
        if let Some(client) = header.client() {
            let permit = record.shared().admission.admit_client(client);
            record.set_ticket(permit.map_err(Outcome::Rejected)?);
        }
    }
    Ok(())
}
