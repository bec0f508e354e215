//! Clients that attack a server. Each attack ends by itself, mostly after one second or less.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};

use crate::victim::Victim;

/// The source address of the attackers.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Connects from an address. Returns `None` if the connection fails.
pub fn connect_from(from: Ipv4Addr, to: SocketAddr) -> Option<TcpStream> {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    // The option allows the kernel to reuse the ports of earlier attackers at once.
    sockopt::set_socket_reuseaddr(&fd, true).unwrap();
    bind(&fd, &SocketAddr::new(IpAddr::V4(from), 0)).unwrap();
    connect(&fd, &to).ok()?;
    let stream = TcpStream::from(fd);
    stream
        .set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    Some(stream)
}

fn attacker(victim: &Victim) -> Option<TcpStream> {
    connect_from(ELSEWHERE, victim.address())
}

fn crowd(victim: &Victim, size: usize) -> Vec<TcpStream> {
    (0..size).filter_map(|_| attacker(victim)).collect()
}

/// Closes the connection so that the peer gets a reset.
fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Waits until the server has closed all connections.
pub fn until_cut(crowd: &mut Vec<TcpStream>) {
    let end = Instant::now() + crate::common::PATIENCE;
    for stream in crowd.iter() {
        stream.set_nonblocking(true).unwrap();
    }
    let mut scratch = vec![0; 1 << 16];
    while !crowd.is_empty() {
        assert!(Instant::now() < end, "{} are still served", crowd.len());
        crowd.retain_mut(|stream| match stream.read(&mut scratch) {
            Ok(n) => n > 0,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Connects and sends nothing.
pub fn silence(victim: &Victim) {
    until_cut(&mut crowd(victim, 1000));
}

/// Sends a byte every 50 ms and never a whole line, as slowhttptest does with headers.
pub fn trickling(victim: &Victim) {
    let mut crowd = crowd(victim, 300);
    let end = Instant::now() + crate::common::PATIENCE;
    let mut scratch = [0; 64];
    for stream in &crowd {
        stream.set_nonblocking(true).unwrap();
    }
    while !crowd.is_empty() {
        assert!(Instant::now() < end, "{} may trickle for ever", crowd.len());
        crowd.retain_mut(|stream| {
            if let Err(error) = stream.write(b"x") {
                return error.kind() == std::io::ErrorKind::WouldBlock;
            }
            !matches!(stream.read(&mut scratch), Ok(0))
        });
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Requests long answers and does not read the answers, as the slow read of slowhttptest does.
pub fn not_reading(victim: &Victim) {
    let line = [&[b'x'; 60_000][..], b"\n"].concat();
    let mut crowd = crowd(victim, 60);
    for stream in &crowd {
        stream.set_nonblocking(true).unwrap();
    }
    // The loop runs until no attacker can write, or the server has cancelled all connections.
    let mut stuck_since = Instant::now();
    while stuck_since.elapsed() < Duration::from_millis(100) {
        for stream in &mut crowd {
            if stream.write(&line).is_ok() {
                stuck_since = Instant::now();
            }
        }
    }
    // Few bytes remain to be read before the end of the connection or a reset.
    until_cut(&mut crowd);
}

/// Connects and closes as fast as possible.
pub fn flood(victim: &Victim) {
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        drop(attacker(victim));
    }
}

/// Resets connections before, within and after a message, and during the answer.
pub fn resets(victim: &Victim) {
    for round in 0..15 {
        let mut crowd = crowd(victim, 20);
        for (n, stream) in crowd.iter_mut().enumerate() {
            let words: &[u8] = match n % 4 {
                0 => b"",
                1 => b"half a li",
                2 => b"a line\n",
                _ => b"a line\nanother\nand a third that is not finished",
            };
            let _ = stream.write_all(words);
        }
        if round % 2 == 0 {
            // The pause lets the server read all of the message.
            std::thread::sleep(Duration::from_millis(5));
        }
        crowd.into_iter().for_each(reset);
    }
}

/// Half-closes connections and leaves the other direction open.
pub fn half_closes(victim: &Victim) {
    let mut crowd = crowd(victim, 300);
    for (n, stream) in crowd.iter_mut().enumerate() {
        let _ = match n % 3 {
            0 => Ok(()),
            1 => stream.write_all(b"a line\n"),
            _ => stream.write_all(b"half a li"),
        };
        // The server cannot see the end of the other direction.
        let _ = stream.shutdown(Shutdown::Write);
    }
    until_cut(&mut crowd);
}

/// Connects once from each of 1000 addresses, one connection after the other. The rate is that of
/// the server, because all clients wait in the same backlog of the kernel.
pub fn everywhere(victim: &Victim) {
    for n in 0..1000_u32 {
        let [_, b, c, d] = (0x7f01_0000 + n).to_be_bytes();
        if let Some(mut stream) = connect_from(Ipv4Addr::new(127, b, c, d), victim.address()) {
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.set_read_timeout(Some(crate::common::PATIENCE));
            let _ = stream.read(&mut [0]);
        }
    }
}
