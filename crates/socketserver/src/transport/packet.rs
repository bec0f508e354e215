//! What UDP and Unix datagram share: receiving, adopting.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use packet_batch::Batch;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketType};

use super::unix_path::PathGuard;
use super::{Got, Intake, SocketOptions, stream};
use crate::{Address, BindError, Datagram, Timeouts};

/// A receiving socket, and the file that goes with it.
///
/// The socket is a blocking one: the loop receives with `MSG_DONTWAIT`, and where the kernel parks
/// handlers, a reply that finds no room is parked by it, for no longer than the send timeout. It stays open until the last
/// datagram that may be replied to is gone.
#[derive(Debug)]
pub struct PacketSocket {
    // Before the socket: while it is open, nobody takes the file for a stale one.
    path: Option<PathGuard>,
    fd: Arc<OwnedFd>,
    /// Received together, and handed out one by one.
    batch: Batch,
}

impl PacketSocket {
    pub(super) fn has_received(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Makes this process the one that cleans up.
    pub(super) fn take_over(&self) {
        if let Some(path) = &self.path {
            path.take_over();
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A reply that finds no room is soon of no use, and the one that waits for it may be the only
/// thread there is.
pub(super) fn default_timeouts() -> Timeouts {
    Timeouts::default().write(Some(Duration::from_secs(1)))
}

pub(super) fn activate(
    fd: OwnedFd,
    path: Option<PathGuard>,
    options: &SocketOptions,
) -> Result<PacketSocket, Errno> {
    rustix::io::ioctl_fionbio(&fd, false)?;
    set_socket_timeout(&fd, Timeout::Send, options.write_timeout)?;
    Ok(PacketSocket {
        fd: Arc::new(fd),
        path,
        batch: Batch::new(options.max_packet_size),
    })
}

pub(super) fn adopt(
    fd: OwnedFd,
    family: &[AddressFamily],
    expected: &'static str,
    options: &SocketOptions,
) -> Result<PacketSocket, BindError> {
    stream::check(&fd, family, SocketType::DGRAM, expected)?;
    activate(fd, None, options).map_err(|errno| BindError::System {
        step: "set the options of",
        address: "the adopted socket".into(),
        source: errno.into(),
    })
}

/// The next datagram. When none is at hand, as many as there is room for are received together.
pub(super) fn get_request(
    socket: &mut PacketSocket,
    intake: &mut Intake,
) -> rustix::io::Result<Got<Datagram>> {
    let PacketSocket { fd, batch, .. } = socket;
    if batch.is_empty() {
        if intake.emptied {
            return Err(Errno::AGAIN);
        }
        batch.receive(&*fd, intake.room)?;
        intake.emptied = batch.has_emptied_socket();
    }
    let packet = batch.next().ok_or(Errno::AGAIN)?;
    let peer = Address::from_any(packet.from.clone());
    let ticket = match intake.server.0.admission.admit(&peer) {
        Ok(ticket) => ticket,
        Err(refusal) => return Ok(Got::Refused(peer, None, refusal)),
    };
    let datagram = Datagram::new(
        (packet.bytes, packet.full_len),
        (peer, packet.from),
        fd.clone(),
        intake.server.clone(),
        intake.server.0.next_id(),
        intake.timeouts.write,
        intake.parker.clone(),
    );
    Ok(Got::Request(datagram, ticket))
}
