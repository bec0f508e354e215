//! The request of a datagram handler: one packet, over UDP or a Unix datagram socket.

mod amplification;
mod reply_path;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use amplification::AmplificationExceeded;
pub(crate) use reply_path::ReplyPath;

use amplification::AmplificationBudget;

use crate::address::Address;
use crate::server::{RequestId, ServerHandle};

/// A received datagram and the path for replies to its sender.
///
/// The server sends nothing unless the handler calls [`reply`](Self::reply). A handler that fails
/// sends no error reply. An empty datagram is a request like any other.
pub struct Datagram {
    data: Vec<u8>,
    full_len: usize,
    peer: Address,
    /// The address to which the socket is bound.
    bound: Arc<Address>,
    reply_path: ReplyPath,
    amplification: Option<AmplificationBudget>,
    server: ServerHandle,
    id: RequestId,
    received: usize,
    sent: AtomicU64,
    peer_gone: AtomicBool,
}

impl Datagram {
    pub(crate) fn new(
        (data, full_len): (&[u8], usize),
        (peer, reply_path): (Address, ReplyPath),
        bound: Arc<Address>,
        max_amplification: Option<u32>,
        server: ServerHandle,
        id: RequestId,
    ) -> Self {
        Self {
            data: data.to_vec(),
            full_len,
            peer,
            bound,
            reply_path,
            amplification: max_amplification
                .map(|factor| AmplificationBudget::new(full_len, factor)),
            server,
            id,
            received: data.len(),
            sent: AtomicU64::new(0),
            peer_gone: AtomicBool::new(false),
        }
    }

    /// Returns the id of this request, unique in its server.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Returns the received bytes. If the datagram [is truncated](Self::is_truncated), these are
    /// its first bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// Takes the bytes without copying them; [`bytes`](Self::bytes) is empty afterwards.
    #[must_use]
    pub fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.data)
    }

    /// Returns true if the datagram was longer than the server's
    /// [`max_packet_size`](crate::Builder::max_packet_size) and was truncated.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.full_len > self.received
    }

    /// Returns the length of the datagram on the wire, in bytes.
    #[must_use]
    pub fn full_len(&self) -> usize {
        self.full_len
    }

    /// Returns the address of the sender. A Unix client that did not bind its socket is
    /// [unnamed](Address::is_unnamed).
    #[must_use]
    pub fn peer_addr(&self) -> &Address {
        &self.peer
    }

    /// Returns the address to which the datagram was sent. Replies come from this address. For a
    /// server on `0.0.0.0` or `[::]`, this is the machine's address that the sender used. For a
    /// broadcast, this is the address that replies.
    #[must_use]
    pub fn local_addr(&self) -> Address {
        match (self.reply_path.from, &*self.bound) {
            (Some(local), Address::Inet(bound)) => Address::Inet(match local.ip {
                IpAddr::V4(_) => SocketAddr::new(local.ip, bound.port()),
                IpAddr::V6(ip) => SocketAddrV6::new(ip, bound.port(), 0, local.interface).into(),
            }),
            (_, bound) => bound.clone(),
        }
    }

    /// Removes the limit of [`max_amplification`](crate::Builder::max_amplification) for replies to
    /// this datagram. Without a limit, this method does nothing.
    ///
    /// Call this method if the datagram proves that the peer receives packets at its source
    /// address. A datagram proves this by returning a value that was sent there: a cookie, a token,
    /// or the number of a session.
    ///
    /// ```
    /// use socketserver::{Datagram, Result};
    ///
    /// /// `cookie` is made of the peer's address and a secret, so that no other peer knows it.
    /// fn answer(packet: &Datagram, cookie: &[u8], pages: &[Vec<u8>]) -> Result<()> {
    ///     if !packet.bytes().starts_with(cookie) {
    ///         // The peer repeats its request with the cookie.
    ///         return Ok(packet.reply(cookie)?);
    ///     }
    ///     packet.mark_validated();
    ///     pages.iter().try_for_each(|page| packet.reply(page))?;
    ///     Ok(())
    /// }
    /// ```
    pub fn mark_validated(&self) {
        if let Some(amplification) = &self.amplification {
            amplification.lift();
        }
    }

    /// Returns the handle of the server. A handler can request a shutdown or read the counters.
    #[must_use]
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// Sends one datagram to the sender, from the address to which the request was sent. A handler
    /// may reply several times or never.
    ///
    /// All replies of a server share the send buffer of its socket. Replies that a Unix client has
    /// not read stay in this buffer. If they fill it, replies to other clients wait, too.
    ///
    /// # Errors
    /// * Returns [`io::ErrorKind::NotConnected`] if the sender is unnamed and cannot receive
    ///   replies.
    /// * Returns [`io::ErrorKind::TimedOut`] if the send buffer had no space within the write
    ///   timeout, for example because a Unix client does not read.
    /// * Returns [`io::ErrorKind::ConnectionRefused`] if the sender's socket is closed.
    /// * Returns [`io::ErrorKind::QuotaExceeded`], with [`AmplificationExceeded`] as its source, if
    ///   the reply would exceed [`max_amplification`](crate::Builder::max_amplification). Nothing
    ///   was sent; a shorter reply may succeed.
    /// * Returns `EMSGSIZE` if `bytes` exceeds the maximum size of a datagram.
    pub fn reply(&self, bytes: &[u8]) -> io::Result<()> {
        if let Some(amplification) = &self.amplification
            && let Err(exceeded) = amplification.take(bytes.len())
        {
            self.server.0.sink.amplification_refused();
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, exceeded));
        }
        let sent = self.reply_path.send(bytes);
        match &sent {
            Ok(()) => {
                self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Err(error) => {
                if let Some(amplification) = &self.amplification {
                    amplification.give_back(bytes.len());
                }
                if reply_path::is_peer_gone(error) {
                    self.peer_gone.store(true, Ordering::Relaxed);
                }
            }
        }
        sent
    }

    pub(crate) fn byte_counts(&self) -> (u64, u64) {
        (self.received as u64, self.sent.load(Ordering::Relaxed))
    }

    pub(crate) fn is_disconnected(&self) -> bool {
        self.peer_gone.load(Ordering::Relaxed)
    }
}

/// The socket that received the datagram. The whole server shares this socket.
impl AsFd for Datagram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reply_path.socket.as_fd()
    }
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagram")
            .field("id", &self.id)
            .field("peer", &self.peer)
            .field("len", &self.data.len())
            .field("full_len", &self.full_len)
            .finish_non_exhaustive()
    }
}
