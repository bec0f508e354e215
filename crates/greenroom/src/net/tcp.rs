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
    /// Those of `bind(2)` and `listen(2)`.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        net::TcpListener::bind(address)?.try_into()
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// Those of `accept(2)`; [`io::ErrorKind::TimedOut`].
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.0.run(Interest::Read, net::TcpListener::accept)?;
        Ok((stream.try_into()?, peer))
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.inner.local_addr()
    }

    /// Bounds the wait of each accept; `None` is no limit.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for zero.
    pub fn set_accept_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_timeout(Interest::Read, timeout)
    }
}

socket!(TcpListener, net::TcpListener);

/// A TCP connection.
#[derive(Debug)]
pub struct TcpStream(Socket<net::TcpStream>);

impl TcpStream {
    /// Connects to the first of the addresses that answers. A name is resolved on the calling
    /// thread; see [`unblock`](crate::unblock()).
    ///
    /// # Errors
    /// Those of `connect(2)`, for the last of the addresses.
    pub fn connect(address: impl ToSocketAddrs) -> io::Result<Self> {
        let mut failure = io::Error::new(io::ErrorKind::InvalidInput, "no address to connect to");
        for address in address.to_socket_addrs()? {
            match Self::connect_to(address) {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
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
                // connect(2): how it ended is told once by SO_ERROR.
                sockopt::socket_error(&socket.inner)??;
            }
            Err(errno) => return Err(errno.into()),
        }
        Ok(Self(socket))
    }

    /// The address at the other end.
    ///
    /// # Errors
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.inner.peer_addr()
    }

    /// The address at this end.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.inner.local_addr()
    }

    /// Half-closes, or closes in both directions.
    ///
    /// # Errors
    /// Those of `shutdown(2)`.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.inner.shutdown(how)
    }

    /// Sends small segments at once, or lets the kernel gather them.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.0.inner.set_nodelay(nodelay)
    }

    timeouts!();
}

stream!(TcpStream);

socket!(TcpStream, net::TcpStream);
