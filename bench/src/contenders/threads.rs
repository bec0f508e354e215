//! Bare threads: one per connection; one for all datagrams.

use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::thread;

use super::stream::Listener;

pub(super) fn streams<const N: usize>(listener: &Listener) -> anyhow::Result<()> {
    loop {
        match listener {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                thread::Builder::new().spawn(move || echo::<N>(stream))?;
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                thread::Builder::new().spawn(move || echo::<N>(stream))?;
            }
        }
    }
}

/// Echoes until the client closes or a write fails.
pub(super) fn echo<const N: usize>(mut stream: impl Read + Write) {
    let mut buf = [0; N];
    while let Ok(n @ 1..) = stream.read(&mut buf) {
        if stream.write_all(&buf[..n]).is_err() {
            break;
        }
    }
}

pub(super) fn datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut buf = [0; 1024];
    loop {
        // An error of an earlier reply (ICMP) is also returned here.
        if let Ok((n, from)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(&buf[..n], from);
        }
    }
}
