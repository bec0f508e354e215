//! One client for the four transports. Every call of it has a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use super::PATIENCE;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
    UnixDatagram(PathBuf),
}

pub struct Client {
    wire: Wire,
    /// Received and not yet taken.
    received: Vec<u8>,
}

enum Wire {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Unix(UnixStream),
    UnixDatagram(UnixDatagram),
}

impl Client {
    /// Connects. A datagram client is bound as well, so that it can be answered.
    pub fn connect(to: &Endpoint) -> io::Result<Self> {
        let wire = match to {
            Endpoint::Tcp(address) => Wire::Tcp(TcpStream::connect_timeout(address, PATIENCE)?),
            // Fails or succeeds at once, unless thousands wait already.
            Endpoint::Unix(path) => Wire::Unix(UnixStream::connect(path)?),
            Endpoint::Udp(address) => {
                let socket = UdpSocket::bind(match address.ip() {
                    IpAddr::V4(_) => (IpAddr::from(Ipv4Addr::LOCALHOST), 0),
                    IpAddr::V6(_) => (IpAddr::from(Ipv6Addr::LOCALHOST), 0),
                })?;
                socket.connect(address)?;
                Wire::Udp(socket)
            }
            Endpoint::UnixDatagram(path) => {
                let socket = named_unix_datagram()?;
                socket.connect(path)?;
                Wire::UnixDatagram(socket)
            }
        };
        let client = Self {
            wire,
            received: Vec::new(),
        };
        client.set_patience(PATIENCE)?;
        Ok(client)
    }

    /// How long a call may wait.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        let limit = Some(patience);
        match &self.wire {
            Wire::Tcp(s) => s.set_read_timeout(limit).and(s.set_write_timeout(limit)),
            Wire::Udp(s) => s.set_read_timeout(limit).and(s.set_write_timeout(limit)),
            Wire::Unix(s) => s.set_read_timeout(limit).and(s.set_write_timeout(limit)),
            Wire::UnixDatagram(s) => s.set_read_timeout(limit).and(s.set_write_timeout(limit)),
        }
    }

    /// Sends bytes: as they are on a stream, as one datagram otherwise.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.wire {
            Wire::Tcp(stream) => stream.write_all(bytes),
            Wire::Unix(stream) => stream.write_all(bytes),
            Wire::Udp(socket) => socket.send(bytes).map(drop),
            Wire::UnixDatagram(socket) => socket.send(bytes).map(drop),
        }
    }

    /// Sends a line; a datagram is one without an end of line.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        if self.is_datagram() {
            self.send(line.as_bytes())
        } else {
            self.send(format!("{line}\n").as_bytes())
        }
    }

    /// Receives a line or a datagram; `None` is the end of a stream.
    pub fn hear(&mut self) -> io::Result<Option<String>> {
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

    /// Says a line, and hears the answer.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        if let Err(error) = self.say(line) {
            panic!("cannot say {line:?}: {error}");
        }
        match self.hear() {
            Ok(Some(answer)) => answer,
            other => panic!("no answer to {line:?}: {other:?}"),
        }
    }

    /// Reads what has arrived: some bytes of a stream, or one datagram.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // What came with the last line comes first.
        if !self.received.is_empty() {
            let n = into.len().min(self.received.len());
            into[..n].copy_from_slice(&self.received[..n]);
            self.received.drain(..n);
            return Ok(n);
        }
        self.receive(into)
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.wire {
            Wire::Tcp(stream) => stream.read(into),
            Wire::Unix(stream) => stream.read(into),
            Wire::Udp(socket) => socket.recv(into),
            Wire::UnixDatagram(socket) => socket.recv(into),
        }
    }

    /// Everything up to the end of the stream; a reset is an error.
    pub fn rest(mut self) -> io::Result<Vec<u8>> {
        let mut rest = std::mem::take(&mut self.received);
        match &mut self.wire {
            Wire::Tcp(stream) => stream.read_to_end(&mut rest)?,
            Wire::Unix(stream) => stream.read_to_end(&mut rest)?,
            Wire::Udp(_) | Wire::UnixDatagram(_) => panic!("a datagram socket has no end"),
        };
        Ok(rest)
    }

    /// Whether the server closes the stream, orderly or by a reset, and without another byte.
    pub fn was_cut(mut self) -> bool {
        let gone = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        match self.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(error) => gone.contains(&error.kind()),
        }
    }

    /// Ends the output: the server reads an end of input, and can still answer.
    pub fn half_close(&self) -> io::Result<()> {
        match &self.wire {
            Wire::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Wire::Unix(stream) => stream.shutdown(Shutdown::Write),
            Wire::Udp(_) | Wire::UnixDatagram(_) => Ok(()),
        }
    }

    /// Goes away without a word: on TCP, the server meets a reset.
    pub fn reset(self) {
        if let Wire::Tcp(stream) = &self.wire {
            let _ = set_socket_linger(stream.as_fd(), Some(Duration::ZERO));
        }
    }

    fn is_datagram(&self) -> bool {
        matches!(self.wire, Wire::Udp(_) | Wire::UnixDatagram(_))
    }
}

/// A Unix datagram socket that can be answered. Its name is abstract, so that no file stays behind.
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
