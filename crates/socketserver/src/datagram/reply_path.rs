//! The way a reply goes: from the server's socket to the sender of one datagram.

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

/// What it takes to answer.
pub(crate) struct ReplyPath {
    /// Shared by the whole server.
    pub(crate) socket: Arc<OwnedFd>,
    /// Nobody, if the sender has no address.
    pub(crate) to: Option<SocketAddrAny>,
    /// Where the datagram was sent to, if the socket has more than one address: a peer that is
    /// connected to that one, or behind a translator of addresses, hears no other.
    pub(crate) from: Option<PacketInfo>,
    pub(crate) write_timeout: Option<Duration>,
    /// What parks a reply that finds no room, if it is not the kernel.
    pub(crate) parker: Option<Arc<dyn Parker>>,
}

impl ReplyPath {
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let Some(to) = &self.to else {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the sender has no address to answer to: a Unix datagram client must bind its \
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
                    // The socket is a blocking one with a send timeout: this is the timeout.
                    None => return Err(timed_out()),
                },
                // The datagram went to a broadcast address that looked like one of this machine, or
                // to one that the machine has lost meanwhile: the kernel chooses another one.
                Err(Errno::INVAL | Errno::NETUNREACH) if packet.local().is_some() => {
                    packet = Transmit::new(bytes, to);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
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
        if to.address_family() == AddressFamily::UNIX {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let kind = SocketType::DGRAM;
            let lookout = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
            match rustix::net::connect(&lookout, to) {
                Ok(()) => wait(&lookout)?,
                // It is connected to us, takes from nobody else, and has no limit for us.
                Err(Errno::PERM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Whether a reply failed because nobody is there any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::CONNREFUSED | Errno::NOENT | Errno::CONNRESET)
    )
}
