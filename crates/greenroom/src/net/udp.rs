//! UDP.

use std::io;
use std::net::{self, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use packet_batch::Transmit;
use rustix::io::Errno;

use super::socket::Socket;
use crate::Interest;
use crate::send_queue::FLAGS;
use crate::worker::Worker;

/// A UDP socket.
#[derive(Debug)]
pub struct UdpSocket(Socket<net::UdpSocket>);

impl UdpSocket {
    /// Binds, as [`std::net::UdpSocket::bind`] does.
    ///
    /// # Errors
    /// Returns the errors of `bind(2)`.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        net::UdpSocket::bind(address)?.try_into()
    }

    /// Sets the destination of [`send`](Self::send), and drops datagrams from other peers.
    ///
    /// # Errors
    /// Returns the errors of `connect(2)`.
    pub fn connect(&self, address: impl ToSocketAddrs) -> io::Result<()> {
        self.0.inner.connect(address)
    }

    /// Waits for a datagram. Bytes that do not fit into `buf` are discarded.
    ///
    /// # Errors
    /// Returns the errors of `recvfrom(2)`, and [`io::ErrorKind::TimedOut`] if the timeout expires.
    pub fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.run(Interest::Read, |socket| socket.recv_from(buf))
    }

    /// Receives as [`recv_from`](Self::recv_from) does, on a connected socket.
    ///
    /// # Errors
    /// Returns the errors of [`recv_from`](Self::recv_from).
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.run(Interest::Read, |socket| socket.recv(buf))
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// Returns the errors of `sendto(2)`, and [`io::ErrorKind::TimedOut`] if the timeout expires.
    pub fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.0
            .run(Interest::Write, |socket| socket.send_to(bytes, to))
    }

    /// Sends a datagram on a connected socket.
    ///
    /// # Errors
    /// Returns the errors of [`send_to`](Self::send_to).
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.run(Interest::Write, |socket| socket.send(bytes))
    }

    /// Returns the address that the socket is bound to.
    ///
    /// # Errors
    /// Returns the errors of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.inner.local_addr()
    }

    timeouts!();
}

socket!(UdpSocket, net::UdpSocket);

/// Sends a datagram without waiting for buffer space. If other coroutines of this worker are ready
/// to run, the call waits for them. The datagrams that they send in this way go out with one system
/// call, `sendmmsg(2)`.
///
/// Use it for the replies of a server whose socket is shared by many coroutines.
///
/// # Errors
/// Returns the errors of `sendto(2)` for this datagram, among them [`io::ErrorKind::WouldBlock`].
pub fn send_together(socket: &Arc<OwnedFd>, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
    send_together_from(socket, &Transmit::new(bytes, &to.into()))
}

/// Sends as [`send_together`] does, optionally [from a certain local address](Transmit::from).
///
/// # Errors
/// Returns the errors of [`send_together`].
pub fn send_together_from(socket: &Arc<OwnedFd>, packet: &Transmit<'_>) -> io::Result<()> {
    match Worker::in_coroutine() {
        Some(local) if local.may_send_later(packet.bytes()) => {
            Ok(local.send_later(socket, packet)?)
        }
        _ => loop {
            match packet_batch::send(&**socket, slice::from_ref(packet), FLAGS) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        },
    }
}
