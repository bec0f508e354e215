//! One client for the four transports. Each of its calls has a timeout.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use super::TIMEOUT;

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
    UnixDatagram(PathBuf),
}

pub struct Client {
    socket: ClientSocket,
    /// Bytes that were received and not returned yet.
    received: Vec<u8>,
}

enum ClientSocket {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Unix(UnixStream),
    UnixDatagram(UnixDatagram),
}

impl Client {
    /// Connects. A datagram client is bound as well, so that it can receive replies.
    pub fn connect(to: &Endpoint) -> io::Result<Self> {
        let socket = match to {
            Endpoint::Tcp(address) => {
                ClientSocket::Tcp(TcpStream::connect_timeout(address, TIMEOUT)?)
            }
            // Succeeds or fails at once, unless the backlog is full.
            Endpoint::Unix(path) => ClientSocket::Unix(UnixStream::connect(path)?),
            Endpoint::Udp(address) => {
                let socket = UdpSocket::bind(match address.ip() {
                    IpAddr::V4(_) => (IpAddr::from(Ipv4Addr::LOCALHOST), 0),
                    IpAddr::V6(_) => (IpAddr::from(Ipv6Addr::LOCALHOST), 0),
                })?;
                socket.connect(address)?;
                ClientSocket::Udp(socket)
            }
            Endpoint::UnixDatagram(path) => {
                let socket = named_unix_datagram()?;
                socket.connect(path)?;
                ClientSocket::UnixDatagram(socket)
            }
        };
        let client = Self {
            socket,
            received: Vec::new(),
        };
        client.set_timeout(TIMEOUT)?;
        Ok(client)
    }

    /// Sets the timeout of each call.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let limit = Some(timeout);
        match &self.socket {
            ClientSocket::Tcp(s) => s.set_read_timeout(limit).and(s.set_write_timeout(limit)),
            ClientSocket::Udp(s) => s.set_read_timeout(limit).and(s.set_write_timeout(limit)),
            ClientSocket::Unix(s) => s.set_read_timeout(limit).and(s.set_write_timeout(limit)),
            ClientSocket::UnixDatagram(s) => {
                s.set_read_timeout(limit).and(s.set_write_timeout(limit))
            }
        }
    }

    /// Sends bytes: unchanged on a stream, or as one datagram.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.socket {
            ClientSocket::Tcp(stream) => stream.write_all(bytes),
            ClientSocket::Unix(stream) => stream.write_all(bytes),
            ClientSocket::Udp(socket) => socket.send(bytes).map(drop),
            ClientSocket::UnixDatagram(socket) => socket.send(bytes).map(drop),
        }
    }

    /// Sends a line. A datagram has no line terminator.
    pub fn send_line(&mut self, line: &str) -> io::Result<()> {
        if self.is_datagram() {
            self.send(line.as_bytes())
        } else {
            self.send(format!("{line}\n").as_bytes())
        }
    }

    /// Receives a line or a datagram; `None` is the end of a stream.
    pub fn receive_line(&mut self) -> io::Result<Option<String>> {
        if self.is_datagram() {
            let mut packet = vec![0; 1 << 17];
            let n = self.read(&mut packet)?;
            return Ok(Some(text(&packet[..n])));
        }
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(Some(text(&line[..end])));
            }
            let mut more = [0; 4096];
            match self.receive(&mut more)? {
                0 if self.received.is_empty() => return Ok(None),
                0 => return Ok(Some(text(&std::mem::take(&mut self.received)))),
                n => self.received.extend_from_slice(&more[..n]),
            }
        }
    }

    /// Sends a line and returns the reply.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        if let Err(error) = self.send_line(line) {
            panic!("cannot send {line:?}: {error}");
        }
        match self.receive_line() {
            Ok(Some(reply)) => reply,
            other => panic!("no reply to {line:?}: {other:?}"),
        }
    }

    /// Reads some bytes of a stream, or one datagram.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // Bytes that arrived with the last line come first.
        if !self.received.is_empty() {
            let n = into.len().min(self.received.len());
            into[..n].copy_from_slice(&self.received[..n]);
            self.received.drain(..n);
            return Ok(n);
        }
        self.receive(into)
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.socket {
            ClientSocket::Tcp(stream) => stream.read(into),
            ClientSocket::Unix(stream) => stream.read(into),
            ClientSocket::Udp(socket) => socket.recv(into),
            ClientSocket::UnixDatagram(socket) => socket.recv(into),
        }
    }

    /// Reads to the end of the stream. Returns an error if the connection is reset.
    pub fn read_rest(mut self) -> io::Result<Vec<u8>> {
        let mut rest = std::mem::take(&mut self.received);
        match &mut self.socket {
            ClientSocket::Tcp(stream) => stream.read_to_end(&mut rest)?,
            ClientSocket::Unix(stream) => stream.read_to_end(&mut rest)?,
            ClientSocket::Udp(_) | ClientSocket::UnixDatagram(_) => {
                panic!("a datagram socket has no end of stream")
            }
        };
        Ok(rest)
    }

    /// Returns true if the server closes or resets the stream without sending another byte.
    pub fn was_closed_by_server(mut self) -> bool {
        let gone = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        match self.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(error) => gone.contains(&error.kind()),
        }
    }

    /// Ends the output: the server reads an end of input, and can still reply.
    pub fn half_close(&self) -> io::Result<()> {
        match &self.socket {
            ClientSocket::Tcp(stream) => stream.shutdown(Shutdown::Write),
            ClientSocket::Unix(stream) => stream.shutdown(Shutdown::Write),
            ClientSocket::Udp(_) | ClientSocket::UnixDatagram(_) => Ok(()),
        }
    }

    /// Resets a TCP connection; closes any other socket.
    pub fn reset(self) {
        if let ClientSocket::Tcp(stream) = &self.socket {
            let _ = set_socket_linger(stream.as_fd(), Some(Duration::ZERO));
        }
    }

    fn is_datagram(&self) -> bool {
        matches!(
            self.socket,
            ClientSocket::Udp(_) | ClientSocket::UnixDatagram(_)
        )
    }
}

/// Creates a Unix datagram socket that can receive replies. Its name is abstract, so that no file
/// is left behind.
pub fn named_unix_datagram() -> io::Result<UnixDatagram> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("socketserver-test-{}-{number}", std::process::id());
    UnixDatagram::bind_addr(&unix::SocketAddr::from_abstract_name(name)?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Connects over TCP from another address of this machine.
pub fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&fd, &SocketAddr::new(from.into(), 0)).unwrap();
    connect(&fd, &to).unwrap();
    TcpStream::from(fd)
}
