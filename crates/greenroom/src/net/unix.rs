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
    /// Returns the errors of `bind(2)` and `listen(2)`.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        net::UnixListener::bind(path)?.try_into()
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// Returns the errors of `accept(2)`, and [`io::ErrorKind::TimedOut`] if the timeout expires.
    pub fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (stream, peer) = self.0.run(Interest::Read, net::UnixListener::accept)?;
        Ok((stream.try_into()?, peer))
    }

    /// Sets the maximum wait of each accept; `None` is no limit.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::InvalidInput`] if `timeout` is zero.
    pub fn set_accept_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_timeout(Interest::Read, timeout)
    }
}

socket!(UnixListener, net::UnixListener);

/// A connected Unix stream socket.
#[derive(Debug)]
pub struct UnixStream(Socket<net::UnixStream>);

impl UnixStream {
    /// Connects. If the listener's backlog is full, the calling thread blocks, because the kernel
    /// has no event for it.
    ///
    /// # Errors
    /// Returns the errors of `connect(2)`.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        net::UnixStream::connect(path)?.try_into()
    }

    /// Creates two sockets that are connected to each other.
    ///
    /// # Errors
    /// Returns the errors of `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = net::UnixStream::pair()?;
        Ok((one.try_into()?, other.try_into()?))
    }

    /// Closes the read half, the write half, or both.
    ///
    /// # Errors
    /// Returns the errors of `shutdown(2)`.
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
    /// Returns the errors of `bind(2)`.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        net::UnixDatagram::bind(path)?.try_into()
    }

    /// Creates two sockets that are connected to each other.
    ///
    /// # Errors
    /// Returns the errors of `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = net::UnixDatagram::pair()?;
        Ok((one.try_into()?, other.try_into()?))
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

    /// Sends a datagram to the socket bound to `path`.
    ///
    /// # Errors
    /// Returns the errors of `sendto(2)`, and [`io::ErrorKind::TimedOut`] if the timeout expires.
    pub fn send_to(&self, bytes: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        let path = path.as_ref();
        self.0
            .run(Interest::Write, |socket| socket.send_to(bytes, path))
    }

    /// Sends a datagram on a connected socket.
    ///
    /// # Errors
    /// Returns the errors of [`send_to`](Self::send_to).
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.run(Interest::Write, |socket| socket.send(bytes))
    }

    timeouts!();
}

socket!(UnixDatagram, net::UnixDatagram);
