//! Attackers that send datagrams. Each attack is short and has a rate.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::attackers::ELSEWHERE;
use crate::callers::{named, tried, unix_address};
use crate::victim::Victim;

const LASTING: Duration = Duration::from_millis(200);

/// Datagrams per second; [`FULL`] means as many as the sender can send.
pub type PerSecond = u32;

pub const FULL: PerSecond = u32::MAX;

/// Sends datagrams from one address.
pub fn flood(victim: &Victim, rate: PerSecond) {
    let (socket, to) = (sender(ELSEWHERE, 0).unwrap(), victim.address());
    with_receive_rate(rate, |_| throw(&socket, b"hello", to));
}

/// Sends each datagram from another source address.
pub fn everywhere(victim: &Victim, rate: PerSecond) {
    static LAST: AtomicU32 = AtomicU32::new(0x7f01_0000);
    let to = victim.address();
    with_receive_rate(rate, |_| {
        let source = Ipv4Addr::from_bits(LAST.fetch_add(1, Ordering::Relaxed));
        throw(&sender(source, 0).unwrap(), b"hello", to);
    });
}

/// Sends datagrams from the ports of known services, as an attacker with forged sources does.
pub fn low_ports(victim: &Victim, rate: PerSecond) {
    let to = victim.address();
    let ports = [7, 19, 53, 123, 161].into_iter();
    let sockets: Vec<_> = ports.filter_map(|port| sender(ELSEWHERE, port)).collect();
    if sockets.is_empty() {
        println!("SKIPPED: this user may not bind ports below 1024");
    } else {
        with_receive_rate(rate, |n| {
            throw(&sockets[n as usize % sockets.len()], b"hello", to);
        });
    }
}

/// Sends the longest possible datagrams and empty datagrams in turn.
pub fn huge_and_empty(victim: &Victim, rate: PerSecond) {
    let (socket, to) = (sender(ELSEWHERE, 0).unwrap(), victim.address());
    // 65,535 bytes less the headers of IP and UDP.
    let huge = vec![b'x'; 65_507];
    with_receive_rate(rate, |n| {
        throw(&socket, if n % 2 == 0 { &huge } else { b"" }, to);
    });
}

/// Sends requests over Unix sockets and never reads the answers.
///
/// The answers stay in the clients' queues, and all answers count into the server's one send
/// buffer. Some 270 answers fill the buffer, and then the server can answer no client. The system
/// sets the length of the queues. Fewer clients would not fill their queues, and more clients would
/// fill the buffer.
pub fn not_reading(victim: &Victim, rate: PerSecond) {
    let queue = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
    let queue: usize = queue.trim().parse::<usize>().unwrap() + 1;
    let crowd: Vec<_> = (0..200 / queue).map(|_| named()).collect();
    if crowd.is_empty() {
        println!("SKIPPED: a queue of {queue} is longer than a server's send buffer can fill");
        return;
    }
    let to = unix_address(victim.server.address(0));
    for socket in &crowd {
        for _ in 0..queue {
            socket.send_to_addr(b"hello", &to).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
    }
    with_receive_rate(rate, |n| {
        tried(crowd[n as usize % crowd.len()].send_to_addr(b"hello", &to));
    });
}

/// Calls `send` at `rate` per second, or as often as possible.
fn with_receive_rate(rate: PerSecond, mut send: impl FnMut(u32)) {
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < LASTING {
        let due = start.elapsed().as_secs_f64() * f64::from(rate);
        while f64::from(sent) < due && start.elapsed() < LASTING {
            send(sent);
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Binds a socket. Returns `None` if bind(2) fails, for example without permission for the port.
fn sender(from: Ipv4Addr, port: u16) -> Option<UdpSocket> {
    let socket = UdpSocket::bind((from, port)).ok()?;
    socket.set_nonblocking(true).unwrap();
    Some(socket)
}

/// Sends a datagram. No process reads the answers, so that the kernel drops them.
fn throw(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    tried(socket.send_to(bytes, to));
}
