//! Unix sockets.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{self, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::socket::Socket;
use crate::Interest;

/// A listening Unix socket.
#[derive(Debug)]
pub struct UnixListener(Socket<net::UnixListener>);

impl UnixListener {
    /// Binds and listens, as [`std::os::unix::net::UnixListener::bind`] does.
    ///
    /// # Errors
    /// Those of `bind(2)` and `listen(2)`.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        net::UnixListener::bind(path)?.try_into()
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// Those of `accept(2)`; [`io::ErrorKind::TimedOut`].
    pub fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (stream, peer) = self.0.run(Interest::Read, net::UnixListener::accept)?;
        Ok((stream.try_into()?, peer))
    }

    /// Bounds the wait of each accept; `None` is no limit.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for zero.
    pub fn set_accept_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_timeout(Interest::Read, timeout)
    }
}

socket!(UnixListener, net::UnixListener);

/// A connected Unix stream socket.
#[derive(Debug)]
pub struct UnixStream(Socket<net::UnixStream>);

impl UnixStream {
    /// Connects. If the listener's queue is full, the calling thread waits, as the kernel has no
    /// event for it.
    ///
    /// # Errors
    /// Those of `connect(2)`.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        net::UnixStream::connect(path)?.try_into()
    }

    /// Two sockets, connected to each other.
    ///
    /// # Errors
    /// Those of `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = net::UnixStream::pair()?;
        Ok((one.try_into()?, other.try_into()?))
    }

    /// Half-closes, or closes in both directions.
    ///
    /// # Errors
    /// Those of `shutdown(2)`.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.inner.shutdown(how)
    }

    timeouts!();
}

stream!(UnixStream);

socket!(UnixStream, net::UnixStream);

/// A Unix datagram socket.
#[derive(Debug)]
pub struct UnixDatagram(Socket<net::UnixDatagram>);

impl UnixDatagram {
    /// Binds, as [`std::os::unix::net::UnixDatagram::bind`] does.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        net::UnixDatagram::bind(path)?.try_into()
    }

    /// Two sockets, connected to each other.
    ///
    /// # Errors
    /// Those of `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = net::UnixDatagram::pair()?;
        Ok((one.try_into()?, other.try_into()?))
    }

    /// Waits for a datagram. What does not fit into `buf` is lost.
    ///
    /// # Errors
    /// Those of `recvfrom(2)`; [`io::ErrorKind::TimedOut`].
    pub fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.run(Interest::Read, |socket| socket.recv_from(buf))
    }

    /// As [`recv_from`](Self::recv_from), for a connected socket.
    ///
    /// # Errors
    /// As for [`recv_from`](Self::recv_from).
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.run(Interest::Read, |socket| socket.recv(buf))
    }

    /// Sends a datagram to the socket bound to `path`.
    ///
    /// # Errors
    /// Those of `sendto(2)`; [`io::ErrorKind::TimedOut`].
    pub fn send_to(&self, bytes: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        let path = path.as_ref();
        self.0
            .run(Interest::Write, |socket| socket.send_to(bytes, path))
    }

    /// Sends a datagram on a connected socket.
    ///
    /// # Errors
    /// As for [`send_to`](Self::send_to).
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.run(Interest::Write, |socket| socket.send(bytes))
    }

    timeouts!();
}

socket!(UnixDatagram, net::UnixDatagram);
