//! The path of a reply from the server's socket to the sender of a datagram.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use packet_batch::{PacketInfo, SendFlags, Transmit};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType};

use crate::park::{Interest, Parker};
use crate::timeouts::{Limits, Wait, timed_out};

/// The data needed to reply to a datagram.
pub(crate) struct ReplyPath {
    /// The socket of the server, shared by all its requests.
    pub(crate) socket: Arc<OwnedFd>,
    /// The sender's address; `None` if the sender is unnamed.
    pub(crate) to: Option<SocketAddrAny>,
    /// The local address of the datagram, if the socket has several addresses. A peer behind a NAT,
    /// or a peer with a connected socket, receives replies from this address only.
    pub(crate) from: Option<PacketInfo>,
    pub(crate) write_timeout: Option<Duration>,
    /// Suspends a reply that finds no space. `None` if the kernel blocks the thread.
    pub(crate) parker: Option<Arc<dyn Parker>>,
}

impl ReplyPath {
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let Some(to) = &self.to else {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "cannot reply: the sender has no address; a Unix datagram client must bind its \
                 socket before it sends",
            ));
        };
        let mut wait = Wait::start(
            Limits {
                wait: self.write_timeout,
                ..Limits::default()
            },
            0,
        )?;
        let mut packet = Transmit::new(bytes, to).from(self.from);
        loop {
            let sent = match &self.parker {
                Some(parker) => parker.send_packet(&self.socket, &packet),
                None => {
                    let packets = slice::from_ref(&packet);
                    packet_batch::send(&*self.socket, packets, SendFlags::NOSIGNAL).map(drop)
                }
            };
            match sent {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => wait.check(0)?,
                Err(Errno::AGAIN) => match &self.parker {
                    Some(parker) => self.wait_for_room(&**parker, to, wait.until())?,
                    // The socket is blocking and has a send timeout, so `EAGAIN` means that this
                    // timeout expired.
                    None => return Err(timed_out()),
                },
                // The datagram was sent to a broadcast address that looks like an address of this
                // machine, or the machine has lost that address since. The kernel then chooses the
                // source address.
                Err(Errno::INVAL | Errno::NETUNREACH) if packet.local().is_some() => {
                    packet = Transmit::new(bytes, to);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Suspends the caller until both the server's socket and the peer's queue may have space.
    ///
    /// The method waits on its own descriptors, because many requests may wait at once. For a Unix
    /// peer's queue, this descriptor is a socket connected to the peer: the kernel reports free
    /// space only for a connected socket, and only after a new poll each time.
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
        if to.address_family() == AddressFamily::UNIX {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let kind = SocketType::DGRAM;
            let probe = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
            match rustix::net::connect(&probe, to) {
                Ok(()) => wait(&probe)?,
                // The peer's socket is connected to the server's socket and accepts datagrams from
                // no other socket. Its queue does not limit the server.
                Err(Errno::PERM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Returns true if a reply failed because the peer's socket is closed.
pub(super) fn is_peer_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::CONNREFUSED | Errno::NOENT | Errno::CONNRESET)
    )
}
