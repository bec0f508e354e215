//! The PROXY protocol, versions 1 and 2: a proxy sends the address of its client before all other
//! data.
//!
//! The source of all facts in this module is [the
//! specification](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).

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
use reader::{HeaderReader, ReadError};

/// The proxies that a server trusts to name their clients by the [PROXY
/// protocol](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt), version 1 or 2. HAProxy
/// (`send-proxy`, `send-proxy-v2`), nginx (`proxy_protocol on`) and the load balancers of cloud
/// providers support it. See [`Builder::proxy_protocol`](crate::Builder::proxy_protocol).
///
/// * **Trusted peers** must begin with a header. A trusted peer without a valid header is rejected
///   as [`Rejection::ProxyHeader`] before a handler is created. If it closes the connection without
///   sending a byte, as a port check does, the request ends as
///   [`Disconnected`](EndReason::Disconnected).
/// * **All other peers** are served directly. Their bytes are passed to the handler, even if the
///   bytes look like a header, so that a client cannot forge its address.
/// * The worker that serves the connection reads the header before the handler's `setup`, and reads
///   no byte after the header. A connection that waits for its header occupies neither a pool
///   thread nor a stack. A sequential server, a thread, or a child waits for the header. The header
///   must be complete within 5 s (see [`timeout`](Self::timeout)). Its maximum length is 107 bytes
///   in version 1, and 16 + 4096 bytes in version 2.
///
/// After the header, [`Connection::peer_addr`], [`RequestInfo::peer`](crate::RequestInfo::peer),
/// events and logs contain the client's address. [`Connection::local_addr`] returns the address
/// that the client connected to, and [`Connection::proxy_addr`] returns the proxy's. A header
/// without addresses (`LOCAL`, as in the proxy's own health checks; `UNKNOWN`) does not change the
/// first two.
///
/// **[`Admission`](crate::Admission)** control runs twice. When the proxy connects, its address
/// must be permitted by the rules, and the connection counts towards the total rate. When the
/// client is known, the rules and the limits per peer apply to the client only. The proxy itself
/// has no limit per peer. [`verify_request`](crate::Builder::verify_request) runs before the
/// header, and receives the proxy's address.
///
/// Under [`Forking`](crate::Forking), only the child knows the client: in the parent,
/// [`ServerHandle::active`](crate::ServerHandle::active) and the event `Ended` contain the proxy's
/// address. Rules apply to clients. Limits per peer cannot, because a child does not know the other
/// children; binding with both options fails. Limits per peer that
/// [`set_admission`](crate::ServerHandle::set_admission) sets later have no effect on clients of
/// proxies.
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

/// The specification requires at least 3 s, to cover one retransmission.
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
    /// Creates a configuration that trusts no peer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts proxies in this network, in addition to those already trusted. Any process that can
    /// connect from the network can forge client addresses. Name the proxies' addresses, not the
    /// networks of clients.
    #[must_use]
    pub fn trust(mut self, network: Network) -> Self {
        self.networks.push(network);
        self
    }

    /// Trusts every peer that can connect to a Unix socket. The socket's
    /// [mode](crate::Builder::mode) determines these peers.
    #[must_use]
    pub fn trust_unix(mut self) -> Self {
        self.unix = true;
        self
    }

    /// Sets the time limit of a header, from the moment a worker waits for it. Defaults to 5 s.
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

    /// Rejects a configuration that is meaningless or cannot be applied.
    pub(crate) fn check(&self, forks_and_counts_peers: bool) -> Result<(), BindError> {
        let reason = if self.networks.is_empty() && !self.unix {
            "it trusts nobody: name the proxies' addresses with trust, or use trust_unix"
        } else if self.timeout.is_zero() {
            "a timeout of zero would reject every proxy: set a timeout of at least 3 s"
        } else if forks_and_counts_peers {
            "under the forking model, limits per peer cannot be applied to the clients of a proxy, \
             because each child knows only its own client: choose another model, or set the limits \
             in the proxy"
        } else {
            return Ok(());
        };
        Err(BindError::BadOption {
            option: "proxy_protocol",
            reason: reason.into(),
        })
    }
}

/// The step that reads the PROXY header and applies admission control to the client.
#[derive(Default)]
pub(super) struct ProxyHeaderStep {
    since: Option<Instant>,
    reader: HeaderReader,
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
        // After the header, `peer_addr` is the client's address.
        if conn.proxy_header().is_some() || !proxy.trusts(conn.peer_addr()) {
            return Ok(PreambleProgress::Complete);
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let until = earliest(since.checked_add(proxy.timeout), conn.deadline());
        match self.reader.advance(conn.socket(), conn.peer_addr()) {
            Ok(Some(header)) => {
                admit_client(header, conn, record).map(|()| PreambleProgress::Complete)
            }
            Ok(None) if is_over(until) => Err(Outcome::Rejected(Rejection::ProxyHeader(
                ProxyHeaderError::TimedOut,
            ))),
            Ok(None) => Ok(PreambleProgress::Incomplete {
                until,
                has_sent_nothing: !self.reader.has_begun(),
            }),
            Err(ReadError::Header(error)) => Err(Outcome::Rejected(Rejection::ProxyHeader(error))),
            Err(ReadError::Disconnected) => Err(Outcome::Ended(match conn.socket().cut() {
                Some(reason) => reason.into(),
                None => EndReason::Disconnected,
            })),
        }
    }
}

fn admit_client(
    header: ProxyHeader,
    conn: &mut Connection,
    record: &mut RequestGuard,
) -> Result<(), Outcome> {
    conn.set_proxied(header);
    if let Some(header) = conn.proxy_header() {
        record.set_proxied(conn.peer_addr(), header.proxy());
        if let Some(client) = header.client() {
            let permit = record.shared().admission.admit_client(client);
            record.set_permit(permit.map_err(Outcome::Rejected)?);
        }
    }
    Ok(())
}
