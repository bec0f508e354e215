//! Well-behaved clients that send datagrams.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, SocketAddrUnix, recv, send};

use crate::common::PATIENCE;

/// The time after which a caller repeats a request, because a datagram may get lost without a
/// notice. The wait counts into the measured time.
const AGAIN: Duration = Duration::from_millis(20);

pub struct Caller {
    socket: OwnedFd,
    asked: u32,
}

impl Caller {
    pub fn by_udp(to: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(to).unwrap();
        Self::with(socket.into())
    }

    pub fn by_unix(to: &UnixAddress) -> Self {
        let socket = named();
        socket.connect_addr(to).unwrap();
        Self::with(socket.into())
    }

    fn with(socket: OwnedFd) -> Self {
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(AGAIN)).unwrap();
        }
        Self { socket, asked: 0 }
    }

    /// Repeats a question until an answer to any of its copies arrives. Returns `true`.
    pub fn ask(&mut self) -> bool {
        self.asked += 1;
        let question = format!("question {}", self.asked);
        let end = Instant::now() + PATIENCE;
        let mut answer = [0; 200];
        while Instant::now() < end {
            // A Unix socket whose queue is full makes the sender wait.
            match send(&self.socket, question.as_bytes(), SendFlags::NOSIGNAL) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => panic!("it cannot ask: {errno}"),
            }
            loop {
                match recv(&self.socket, &mut answer, RecvFlags::empty()) {
                    Ok((n, _)) if answer[..n].ends_with(question.as_bytes()) => return true,
                    Ok(_) => {}
                    Err(Errno::AGAIN | Errno::INTR) => break,
                    Err(errno) => panic!("it is not answered: {errno}"),
                }
            }
        }
        panic!("it is not answered");
    }
}

/// Returns a Unix socket that can receive answers. The kernel chooses its name: unix(7), "Autobind
/// feature".
pub fn named() -> UnixDatagram {
    let socket = UnixDatagram::unbound().unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed()).unwrap();
    socket
}

/// Returns the address of a server whose endpoint is `unixgram://@NAME`.
pub fn unix_address(endpoint: &str) -> UnixAddress {
    let name = endpoint.strip_prefix('@').unwrap();
    UnixAddress::from_abstract_name(name).unwrap()
}

/// Panics unless the datagram was sent or the queue was full.
pub fn tried(sent: std::io::Result<usize>) {
    if let Err(error) = sent
        && error.kind() != ErrorKind::WouldBlock
    {
        panic!("it cannot send: {error}");
    }
}
