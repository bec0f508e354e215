//! Common code of TCP and Unix stream sockets: listening, accepting and adopting.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, acceptfrom_with, sockopt};
use socket2::{SockFilter, SockRef};

use super::unix_path::PathGuard;
use super::{AcceptContext, Accepted, SocketOptions};
use crate::socket::Socket;
use crate::{Address, BindError, Connection};

/// A listening socket with its socket file.
#[derive(Debug)]
pub struct StreamListener {
    // Dropped before the socket: while the socket is open, no other process takes the file for
    // stale.
    path: Option<PathGuard>,
    fd: OwnedFd,
    /// It was bound here: when it is closed, what waits in its queue is reset.
    is_own: bool,
}

impl StreamListener {
    /// Makes the kernel ignore new TCP connections from now on. Connections that are established can
    /// still be accepted, and none is added while the last of them is: it would be reset.
    ///
    /// A socket that was adopted stays as it is, as others have it, too.
    pub(super) fn ignore_newcomers(&self) {
        /// For each segment that reaches the listener, from its TCP header on (`socket(7)`).
        const NO_SYN: [SockFilter; 5] = [
            // The flags (RFC 9293, 3.1): SYN without ACK begins a connection.
            SockFilter::new(0x30, 0, 0, 13),
            SockFilter::new(0x54, 0, 0, 0x12),
            SockFilter::new(0x15, 0, 1, 0x02),
            SockFilter::new(0x06, 0, 0, 0),
            SockFilter::new(0x06, 0, 0, u32::MAX),
        ];
        if self.is_own {
            // Where that is forbidden, a client may come between the last look and the end.
            let _ = SockRef::from(&self.fd).attach_filter(&NO_SYN);
        }
    }

    /// Makes this process the one that removes the socket file.
    pub(super) fn take_over(&self) {
        if let Some(path) = &self.path {
            path.take_over();
        }
    }
}

impl AsFd for StreamListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a bound socket listen. `accept` on it never blocks, because a client may have disconnected
/// between the wake-up and the call.
pub(super) fn activate(
    fd: OwnedFd,
    path: Option<PathGuard>,
    options: &SocketOptions,
) -> Result<StreamListener, Errno> {
    rustix::net::listen(&fd, options.backlog)?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(StreamListener {
        fd,
        path,
        is_own: true,
    })
}

pub(super) fn adopt(
    fd: OwnedFd,
    family: &[AddressFamily],
    expected: &'static str,
    options: &SocketOptions,
) -> Result<StreamListener, BindError> {
    check(&fd, family, SocketType::STREAM, expected)?;
    let listening = sockopt::socket_acceptconn(&fd).unwrap_or(false);
    let adopted = if listening {
        rustix::io::ioctl_fionbio(&fd, true).map(|()| StreamListener {
            fd,
            path: None,
            is_own: false,
        })
    } else {
        activate(fd, None, options).map(|listener| StreamListener {
            is_own: false,
            ..listener
        })
    };
    adopted.map_err(|errno| BindError::System {
        step: "listen on",
        address: "the adopted socket".into(),
        source: errno.into(),
    })
}

/// Rejects a descriptor that does not match the transport.
pub(super) fn check(
    fd: &OwnedFd,
    families: &[AddressFamily],
    kind: SocketType,
    expected: &'static str,
) -> Result<(), BindError> {
    let wrong = |found: String| BindError::WrongSocket { expected, found };
    let found = sockopt::socket_domain(fd)
        .and_then(|family| Ok((family, sockopt::socket_type(fd)?)))
        .map_err(|errno| wrong(format!("no socket ({errno})")))?;
    if families.contains(&found.0) && found.1 == kind {
        return Ok(());
    }
    let family = match found.0 {
        AddressFamily::INET => "IPv4",
        AddressFamily::INET6 => "IPv6",
        AddressFamily::UNIX => "Unix",
        _ => "different-family",
    };
    let kind = match found.1 {
        SocketType::STREAM => "stream",
        SocketType::DGRAM => "datagram",
        _ => "other",
    };
    Err(wrong(format!("a {family} {kind} socket")))
}

/// Accepts one connection.
pub(super) fn get_request(
    listener: &StreamListener,
    accept_context: &mut AcceptContext,
) -> rustix::io::Result<Accepted<Connection>> {
    let mut flags = SocketFlags::CLOEXEC;
    // On Linux an accepted socket does not inherit O_NONBLOCK: accept(2).
    flags.set(SocketFlags::NONBLOCK, accept_context.parker.is_some());
    let (fd, peer) = acceptfrom_with(&listener.fd, flags)?;
    let peer = Address::from_any(peer);
    let shared = &accept_context.server.0;
    let permit = match shared.preamble.admit(&peer, &shared.admission) {
        Ok(permit) => permit,
        Err(rejection) => return Ok(Accepted::Rejected(peer, Some(fd), rejection)),
    };
    let park = match &accept_context.parker {
        Some(parker) => Some(
            parker
                .attach(fd.as_fd())
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::NOMEM))?,
        ),
        None => None,
    };
    let id = accept_context.server.0.next_id();
    let server = accept_context.server.clone();
    let socket = Socket::new(fd, park);
    let conn = Connection::new(socket, peer, server, id, accept_context.timeouts.clone());
    Ok(Accepted::Request(conn, permit))
}
