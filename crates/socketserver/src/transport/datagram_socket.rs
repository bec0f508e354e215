//! Common code of UDP and Unix datagram sockets: receiving and adopting.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use packet_batch::{Batch, set_recv_drop_count, set_recv_pktinfo};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketType, getsockname};

use super::own::OwnAddresses;
use super::unix_path::PathGuard;
use super::{AcceptContext, Accepted, SocketOptions, stream_listener};
use crate::datagram::ReplyPath;
use crate::{Address, BindError, Datagram, Rejection, Timeouts};

/// A receiving socket with its socket file.
///
/// The socket is blocking. The accept loop receives with `MSG_DONTWAIT`. If the kernel blocks
/// handlers, a reply without room in the send buffer waits in the kernel, at most for the send
/// timeout. The socket stays open until the last datagram that can be replied to is dropped.
#[derive(Debug)]
pub struct PacketSocket {
    // Dropped before the socket: while the socket is open, no other process takes the file for
    // stale.
    path: Option<PathGuard>,
    fd: Arc<OwnedFd>,
    /// Datagrams received in one call, and returned one by one.
    batch: Batch,
    address: Arc<Address>,
    max_amplification: Option<u32>,
    refuses_low_ports: bool,
    own: OwnAddresses,
}

impl PacketSocket {
    pub(super) fn has_received(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Makes this process the one that removes the socket file.
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

/// A reply that waits for room soon becomes useless, and its handler may occupy the only thread.
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
    let mut batch = Batch::new(options.max_packet_size);
    let address = Address::from_any(Some(getsockname(&fd)?));
    if let Some(inet) = address.as_inet() {
        set_recv_drop_count(&fd)?;
        batch = batch.with_packet_info();
        // A socket bound to a single address always replies from that address.
        if inet.ip().is_unspecified() {
            set_recv_pktinfo(&fd)?;
        }
    }
    let own = OwnAddresses::register(&fd, address.clone());
    Ok(PacketSocket {
        fd: Arc::new(fd),
        path,
        batch,
        address: Arc::new(address),
        max_amplification: options.max_amplification,
        refuses_low_ports: options.reject_low_ports,
        own,
    })
}

pub(super) fn adopt(
    fd: OwnedFd,
    family: &[AddressFamily],
    expected: &'static str,
    options: &SocketOptions,
) -> Result<PacketSocket, BindError> {
    stream_listener::check(&fd, family, SocketType::DGRAM, expected)?;
    activate(fd, None, options).map_err(|errno| BindError::System {
        step: "set the options of",
        address: "the adopted socket".into(),
        source: errno.into(),
    })
}

/// Returns the next datagram. If none is buffered, receives as many as there is room for.
pub(super) fn get_request(
    socket: &mut PacketSocket,
    accept_context: &mut AcceptContext,
) -> rustix::io::Result<Accepted<Datagram>> {
    let PacketSocket { fd, batch, own, .. } = socket;
    let sink = &accept_context.server.0.sink;
    if batch.is_empty() {
        if accept_context.emptied {
            return Err(Errno::AGAIN);
        }
        let before = batch.dropped();
        batch.receive(&*fd, accept_context.room)?;
        accept_context.emptied = batch.is_socket_empty();
        let dropped = batch.dropped() - before;
        if dropped > 0 {
            sink.dropped_by_kernel(dropped);
            accept_context.dropped += dropped;
        }
    }
    let packet = batch.next().ok_or(Errno::AGAIN)?;
    if packet.full_len > packet.bytes.len() {
        sink.truncated();
    }
    let peer = Address::from_any(packet.from.clone());
    if let Some(rejection) = unanswerable(&peer, own, socket.refuses_low_ports) {
        return Ok(Accepted::Rejected(peer, None, rejection));
    }
    let permit = match accept_context.server.0.admission.admit(&peer) {
        Ok(permit) => permit,
        Err(rejection) => return Ok(Accepted::Rejected(peer, None, rejection)),
    };
    let reply_path = ReplyPath {
        socket: fd.clone(),
        to: packet.from.filter(|_| !peer.is_unnamed()),
        from: packet.local,
        write_timeout: accept_context.timeouts.write,
        parker: accept_context.parker.clone(),
    };
    let datagram = Datagram::new(
        (packet.bytes, packet.full_len),
        (peer, reply_path),
        socket.address.clone(),
        socket.max_amplification,
        accept_context.server.clone(),
        accept_context.server.0.next_id(),
    );
    Ok(Accepted::Request(datagram, permit))
}

/// Returns the reason why a datagram with this source address must not be answered.
fn unanswerable(peer: &Address, own: &mut OwnAddresses, no_low_ports: bool) -> Option<Rejection> {
    let port = peer.as_inet().map(|inet| inet.port());
    if port == Some(0) {
        // The kernel rejects this port as a destination. In RFC 768, port 0 means that no reply is
        // expected.
        Some(Rejection::NoPort)
    } else if own.include(peer) {
        Some(Rejection::OwnAddress)
    } else if no_low_ports && port.is_some_and(|port| port < 1024) {
        // The port of a well-known service: clients send from other ports, and a reply must not
        // make two services answer each other.
        Some(Rejection::LowPort)
    } else {
        None
    }
}
