//! What a datagram handler is given: one packet, over UDP or a Unix datagram socket.

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

/// One datagram and the way back to its sender.
///
/// Nothing is sent unless the handler calls [`reply`](Self::reply), so a handler that fails sends
/// nothing. An empty datagram is a request like any other.
pub struct Datagram {
    data: Vec<u8>,
    full_len: usize,
    peer: Address,
    /// What the socket is bound to.
    bound: Arc<Address>,
    reply_path: ReplyPath,
    amplification: Option<AmplificationBudget>,
    server: ServerHandle,
    id: RequestId,
    received: usize,
    sent: AtomicU64,
    lost: AtomicBool,
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
            lost: AtomicBool::new(false),
        }
    }

    /// The number of this request, unique in its server.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// What was received. If it [is truncated](Self::is_truncated), only its beginning.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// Takes the bytes out, without copying; [`bytes`](Self::bytes) is empty afterwards.
    #[must_use]
    pub fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.data)
    }

    /// Whether the datagram was longer than the server's
    /// [`max_packet_size`](crate::Builder::max_packet_size), and was cut.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.full_len > self.received
    }

    /// How long the datagram was on the wire, in bytes.
    #[must_use]
    pub fn full_len(&self) -> usize {
        self.full_len
    }

    /// Who sent it. A Unix client that did not bind its socket is
    /// [unnamed](Address::is_unnamed).
    #[must_use]
    pub fn peer_addr(&self) -> &Address {
        &self.peer
    }

    /// The address that it was sent to, and that replies come from. Of a server on `0.0.0.0` or
    /// `[::]`, the one of this machine's addresses that the sender has used; of a broadcast, the
    /// one that answers it.
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

    /// Lifts the limit that [`max_amplification`](crate::Builder::max_amplification) has set for the
    /// answer to this datagram: the handler knows that the peer receives at the address that it
    /// sends from, because the datagram brings back what was sent there (a cookie, a token, the
    /// number of a session). Without a limit it does nothing.
    ///
    /// ```
    /// use socketserver::{Datagram, Result};
    ///
    /// /// `cookie` is made of the peer's address and a secret, so that nobody else can know it.
    /// fn answer(packet: &Datagram, cookie: &[u8], pages: &[Vec<u8>]) -> Result<()> {
    ///     if !packet.bytes().starts_with(cookie) {
    ///         // Whoever is there may ask again with this.
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

    /// The server's controller: a handler may ask for a shutdown, or look at the counters.
    #[must_use]
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// Sends one datagram back to the sender, from the address that it had sent to. May be called
    /// several times, or not at all.
    ///
    /// All replies of a server share the send buffer of its socket. A Unix client that does not
    /// read keeps what was sent to it there: if that fills it, replies to others wait, too.
    ///
    /// # Errors
    /// * [`io::ErrorKind::NotConnected`]: the sender is unnamed and cannot be answered;
    /// * [`io::ErrorKind::TimedOut`]: there was no room within the write timeout, as when a Unix
    ///   client does not read;
    /// * [`io::ErrorKind::ConnectionRefused`]: the sender's socket is gone;
    /// * [`io::ErrorKind::QuotaExceeded`], with [`AmplificationExceeded`] inside: it would be more
    ///   than [`max_amplification`](crate::Builder::max_amplification) allows. Nothing was sent;
    ///   something shorter may be.
    /// * `EMSGSIZE`: `bytes` is more than one datagram can carry.
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
                if reply_path::is_gone(error) {
                    self.lost.store(true, Ordering::Relaxed);
                }
            }
        }
        sent
    }

    pub(crate) fn byte_counts(&self) -> (u64, u64) {
        (self.received as u64, self.sent.load(Ordering::Relaxed))
    }

    pub(crate) fn is_disconnected(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

/// The socket that it came in by, and that the whole server shares.
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
