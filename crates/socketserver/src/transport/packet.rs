//! What UDP and Unix datagram share: receiving, adopting.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketType, recvfrom};

use super::unix_path::PathGuard;
use super::{Intake, SocketOptions, stream};
use crate::{BindError, Datagram, Timeouts};

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
}

impl PacketSocket {
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

/// Receives one datagram.
pub(super) fn get_request(
    socket: &PacketSocket,
    intake: &mut Intake,
) -> rustix::io::Result<Datagram> {
    // With MSG_TRUNC the kernel reports the datagram's full length, even if it did not fit.
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let (kept, full_len, from) = recvfrom(&socket.fd, intake.buffer.as_mut_slice(), flags)?;
    let id = intake.server.0.next_id();
    let packet = (&intake.buffer[..kept], full_len);
    let server = intake.server.clone();
    let write_timeout = intake.timeouts.write;
    Ok(Datagram::new(
        packet,
        from,
        socket.fd.clone(),
        server,
        id,
        write_timeout,
        intake.parker.clone(),
    ))
}
