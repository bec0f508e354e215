//! What a datagram handler is given: one packet, over UDP or a Unix datagram socket.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrAny, SocketFlags, SocketType};

use crate::address::Address;
use crate::park::{Interest, Parker};
use crate::server::{Controller, RequestId};
use crate::timeouts::{Limits, Wait, timed_out};

/// One datagram and the way back to its sender.
///
/// Nothing is sent unless the handler calls [`reply`](Self::reply), so a handler that fails sends
/// nothing. An empty datagram is a request like any other.
pub struct Datagram {
    data: Vec<u8>,
    full_len: usize,
    peer: Address,
    way_back: Option<SocketAddrAny>,
    socket: Arc<OwnedFd>,
    server: Controller,
    id: RequestId,
    write_timeout: Option<Duration>,
    /// What parks a reply that finds no room, if it is not the kernel.
    parker: Option<Arc<dyn Parker>>,
    received: usize,
    sent: AtomicU64,
    lost: AtomicBool,
}

impl Datagram {
    pub(crate) fn new(
        packet: (&[u8], usize),
        from: (Address, Option<SocketAddrAny>),
        socket: Arc<OwnedFd>,
        server: Controller,
        id: RequestId,
        write_timeout: Option<Duration>,
        parker: Option<Arc<dyn Parker>>,
    ) -> Self {
        let ((data, full_len), (peer, way_back)) = (packet, from);
        Self {
            data: data.to_vec(),
            full_len,
            peer,
            way_back,
            socket,
            server,
            id,
            write_timeout,
            parker,
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

    /// The server's controller: a handler may ask for a shutdown, or look at the counters.
    #[must_use]
    pub fn server(&self) -> &Controller {
        &self.server
    }

    /// Sends one datagram back to the sender. May be called several times, or not at all.
    ///
    /// All replies of a server share the send buffer of its socket. A Unix client that does not
    /// read keeps what was sent to it there: if that fills it, replies to others wait, too.
    ///
    /// # Errors
    /// * [`io::ErrorKind::NotConnected`]: the sender is unnamed and cannot be answered;
    /// * [`io::ErrorKind::TimedOut`]: there was no room within the write timeout, as when a Unix
    ///   client does not read;
    /// * [`io::ErrorKind::ConnectionRefused`]: the sender's socket is gone;
    /// * `EMSGSIZE`: `bytes` is more than one datagram can carry.
    pub fn reply(&self, bytes: &[u8]) -> io::Result<()> {
        let Some(to) = self.way_back.as_ref().filter(|_| !self.peer.is_unnamed()) else {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the sender has no address to answer to: a Unix datagram client must bind its \
                 socket before it sends",
            ));
        };
        let mut wait = Wait::begin(
            Limits {
                wait: self.write_timeout,
                ..Limits::default()
            },
            0,
        )?;
        loop {
            let sent = match &self.parker {
                Some(parker) => parker.send_packet(&self.socket, bytes, to),
                None => {
                    rustix::net::sendto(&*self.socket, bytes, SendFlags::NOSIGNAL, to).map(drop)
                }
            };
            match sent {
                Ok(()) => {
                    self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    return Ok(());
                }
                Err(Errno::INTR) => wait.expired(0)?,
                Err(Errno::AGAIN) => match &self.parker {
                    Some(parker) => self.wait_for_room(&**parker, to, wait.until())?,
                    // The socket is a blocking one with a send timeout: this is the timeout.
                    None => return Err(timed_out()),
                },
                Err(errno) => return Err(self.failed(errno)),
            }
        }
    }

    fn failed(&self, errno: Errno) -> io::Error {
        if matches!(errno, Errno::CONNREFUSED | Errno::NOENT | Errno::CONNRESET) {
            self.lost.store(true, Ordering::Relaxed);
        }
        errno.into()
    }

    /// Parks whoever replies until there may be room, both in our own socket and in the peer's.
    ///
    /// It waits on descriptors of its own, as many may wait at once. For a Unix peer's queue that is
    /// a socket connected to it: only then does the kernel report that there is room again, and
    /// only when it is asked anew each time.
    fn wait_for_room(
        &self,
        parker: &dyn Parker,
        to: &SocketAddrAny,
        until: Option<Instant>,
    ) -> io::Result<()> {
        let wait = |fd: &OwnedFd| {
            let park = parker.attach(fd.as_fd())?;
            park.wait(fd.as_fd(), Interest::Write, until)
        };
        wait(&rustix::io::fcntl_dupfd_cloexec(&*self.socket, 0)?)?;
        if let Address::Unix(_) = self.peer {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let kind = SocketType::DGRAM;
            let lookout = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
            match rustix::net::connect(&lookout, to) {
                Ok(()) => wait(&lookout)?,
                // It is connected to us, takes from nobody else, and has no limit for us.
                Err(Errno::PERM) => {}
                Err(errno) => return Err(self.failed(errno)),
            }
        }
        Ok(())
    }

    pub(crate) fn meters(&self) -> (u64, u64) {
        (self.received as u64, self.sent.load(Ordering::Relaxed))
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

/// The socket that it came in by, and that the whole server shares.
impl AsFd for Datagram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
