//! TCP.

use std::io::{self, Read, Write};
use std::net::{self, Shutdown, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::socket::Socket;
use crate::Interest;

/// A listening TCP socket.
#[derive(Debug)]
pub struct TcpListener(Socket<net::TcpListener>);

impl TcpListener {
    /// Binds and listens, as [`std::net::TcpListener::bind`] does.
    ///
    /// # Errors
    /// Returns the errors of `bind(2)` and `listen(2)`.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        net::TcpListener::bind(address)?.try_into()
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// Returns the errors of `accept(2)`, and [`io::ErrorKind::TimedOut`] if the timeout expires.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.0.run(Interest::Read, net::TcpListener::accept)?;
        Ok((stream.try_into()?, peer))
    }

    /// Returns the address that the socket is bound to.
    ///
    /// # Errors
    /// Returns the errors of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.inner.local_addr()
    }

    /// Sets the maximum wait of each accept; `None` is no limit.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::InvalidInput`] if `timeout` is zero.
    pub fn set_accept_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_timeout(Interest::Read, timeout)
    }
}

socket!(TcpListener, net::TcpListener);

/// A TCP connection.
#[derive(Debug)]
pub struct TcpStream(Socket<net::TcpStream>);

impl TcpStream {
    /// Connects to the first of the addresses that accepts. A name is resolved on the calling
    /// thread; see [`unblock`](crate::unblock()).
    ///
    /// # Errors
    /// Returns the error of `connect(2)` for the last of the addresses.
    pub fn connect(address: impl ToSocketAddrs) -> io::Result<Self> {
        let mut last_error =
            io::Error::new(io::ErrorKind::InvalidInput, "no address to connect to");
        for address in address.to_socket_addrs()? {
            match Self::connect_to(address) {
                Ok(stream) => return Ok(stream),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    fn connect_to(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let socket = Socket::new(net::TcpStream::from(fd))?;
        match rustix::net::connect(&socket.inner, &address) {
            Ok(()) => {}
            Err(Errno::INPROGRESS) => {
                socket.wait(Interest::Write, None)?;
                // connect(2): SO_ERROR returns the result of the connect once.
                sockopt::socket_error(&socket.inner)??;
            }
            Err(errno) => return Err(errno.into()),
        }
        Ok(Self(socket))
    }

    /// Returns the address of the peer.
    ///
    /// # Errors
    /// Returns the errors of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.inner.peer_addr()
    }

    /// Returns the local address.
    ///
    /// # Errors
    /// Returns the errors of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.inner.local_addr()
    }

    /// Closes the read half, the write half, or both.
    ///
    /// # Errors
    /// Returns the errors of `shutdown(2)`.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.inner.shutdown(how)
    }

    /// Sets `TCP_NODELAY`: true sends small segments at once, false lets the kernel coalesce them.
    ///
    /// # Errors
    /// Returns the errors of `setsockopt(2)`.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.0.inner.set_nodelay(nodelay)
    }

    timeouts!();
}

stream!(TcpStream);

socket!(TcpStream, net::TcpStream);
