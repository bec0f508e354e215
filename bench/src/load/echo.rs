//! Connections that each send a message, wait for it to come back, and send the next.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Count, Load, NO_EVENTS, client, next, watch};

pub(super) struct Echo {
    epoll: OwnedFd,
    /// Each with the number of bytes that are still to come back.
    streams: Vec<(OwnedFd, usize)>,
    message: Vec<u8>,
}

impl Echo {
    /// Each of the connections has had an answer already.
    pub(super) fn connect(
        address: SocketAddr,
        clients: usize,
        size: usize,
    ) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let message = vec![b'x'; size];
        let mut streams = Vec::new();
        for number in 0..clients {
            let stream = TcpStream::connect(address).context("cannot connect")?;
            stream.set_nodelay(true)?;
            exchange(&stream, &message)?;
            stream.set_nonblocking(true)?;
            let stream = OwnedFd::from(stream);
            watch(&epoll, &stream, number)?;
            streams.push((stream, 0));
        }
        Ok(Self {
            epoll,
            streams,
            message,
        })
    }
}

impl Load for Echo {
    fn run(&mut self, time: Duration) -> anyhow::Result<Count> {
        let end = Instant::now() + time;
        let mut count = Count::default();
        let mut outstanding = self.streams.len();
        let mut events = NO_EVENTS;
        let mut buf = [0; 65_536];
        for (stream, missing) in &mut self.streams {
            *missing = self.message.len();
            send(stream, &self.message)?;
        }
        while outstanding > 0 {
            let ready = next(&self.epoll, &mut events)?;
            let over = Instant::now() >= end;
            for event in ready {
                let (stream, missing) = &mut self.streams[client(event)?];
                let n = match rustix::net::recv(&*stream, &mut buf, RecvFlags::empty()) {
                    Ok((n, _)) => n,
                    Err(Errno::AGAIN | Errno::INTR) => continue,
                    Err(errno) => return Err(errno.into()),
                };
                ensure!(
                    n > 0 && n <= *missing,
                    "the server closed, or sent too much"
                );
                *missing -= n;
                if *missing > 0 {
                    continue;
                }
                count.answered += 1;
                if over {
                    outstanding -= 1;
                } else {
                    *missing = self.message.len();
                    send(stream, &self.message)?;
                }
            }
        }
        Ok(count)
    }
}

fn exchange(mut stream: &TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message)?;
    stream.read_exact(&mut vec![0; message.len()])
}

pub(super) fn send(stream: &OwnedFd, message: &[u8]) -> anyhow::Result<()> {
    let n = rustix::net::send(stream, message, SendFlags::NOSIGNAL)?;
    ensure!(n == message.len(), "the server does not read");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn every_message_is_counted_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut echoed = 0;
            let mut message = [0; 16];
            while stream.read_exact(&mut message).is_ok() {
                stream.write_all(&message).unwrap();
                echoed += 1;
            }
            echoed
        });
        let mut load = Echo::connect(address, 1, 16).unwrap();
        let time = Duration::from_millis(20);
        let count = load.run(time).unwrap().answered + load.run(time).unwrap().answered;
        drop(load);
        // And the one of the beginning.
        assert_eq!(server.join().unwrap(), count + 1);
    }

    #[test]
    fn a_server_that_leaves_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut message = [0; 16];
            stream.read_exact(&mut message).unwrap();
            stream.write_all(&message).unwrap();
        });
        let mut load = Echo::connect(address, 1, 16).unwrap();
        server.join().unwrap();
        assert!(load.run(Duration::from_millis(20)).is_err());
    }
}
