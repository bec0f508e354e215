//! Clients that each connect, send one message, wait for the echo, and close.
//!
//! A client shuts down its output once it has the answer, and waits for the server to close. Only a
//! connection that both sides have closed is counted. The client closes first, so `TIME_WAIT` stays
//! with the client, as with most clients. Connections come from 250 loopback addresses in turn, so
//! that `TIME_WAIT` does not use up the ports. (A reset would leave no `TIME_WAIT`, but would take
//! every server into its error path.)

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use anyhow::{Context, ensure};
use rustix::event::epoll;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};

use super::message::{Messages, send};
use super::{BUFFER, ClosedLoop, Load, Outcome, RunSpec, receive, register};
use crate::environment::set_congestion_control;

pub(super) struct Churn {
    epoll: OwnedFd,
    server: SocketAddr,
    clients: Vec<Option<Client>>,
    messages: Messages,
    /// The last byte of the next source address.
    source: u8,
    /// Number of connections so far.
    started: u32,
    buf: Vec<u8>,
}

struct Client {
    stream: OwnedFd,
    /// Number of the message that was sent.
    message: u32,
    /// Received bytes of the answer; after the last one, the client waits for the end of the
    /// stream.
    received: usize,
}

impl Churn {
    pub(super) fn new(server: SocketAddr, clients: usize, size: usize) -> anyhow::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            server,
            clients: (0..clients).map(|_| None).collect(),
            messages: Messages::new(size)?,
            started: 0,
            buf: vec![0; BUFFER],
            source: 1,
        })
    }
}

impl ClosedLoop for Churn {
    fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Connects the client. The call blocks, which is short on a loopback.
    fn start_request(&mut self, number: usize) -> anyhow::Result<()> {
        let kind = SocketType::STREAM;
        let stream =
            rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
        let source = SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, self.source), 0);
        self.source = self.source % 250 + 1;
        set_congestion_control(&stream);
        rustix::net::bind(&stream, &source).context("cannot bind a source address")?;
        rustix::net::connect(&stream, &self.server).context("cannot connect to the server")?;
        self.started = self.started.wrapping_add(1);
        send(&stream, self.messages.of(number, self.started))?;
        register(&self.epoll, &stream, number)?;
        self.clients[number] = Some(Client {
            stream,
            message: self.started,
            received: 0,
        });
        Ok(())
    }

    fn on_readable(&mut self, number: usize) -> anyhow::Result<bool> {
        let Some(client) = &mut self.clients[number] else {
            return Ok(false);
        };
        let Some(bytes) = receive(&client.stream, &mut self.buf)? else {
            return Ok(false);
        };
        if bytes.is_empty() {
            let has_all = client.received == self.messages.size();
            ensure!(has_all, "the server closed before the answer was complete");
            self.clients[number] = None;
            return Ok(true);
        }
        let Client {
            message, received, ..
        } = *client;
        self.messages.check(number, message, received, bytes)?;
        client.received += bytes.len();
        if client.received == self.messages.size() {
            rustix::net::shutdown(&client.stream, Shutdown::Write)?;
        }
        Ok(false)
    }
}

impl Load for Churn {
    fn run(&mut self, spec: RunSpec) -> anyhow::Result<Outcome> {
        self.run_clients(0..self.clients.len(), spec.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    /// Serves one connection after the other until one fails; returns the number served.
    fn serve(
        mut each: impl FnMut(TcpStream) -> std::io::Result<()> + Send + 'static,
    ) -> (SocketAddr, std::thread::JoinHandle<u32>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let mut served = 0;
            while each(listener.accept().unwrap().0).is_ok() {
                served += 1;
            }
            served
        });
        (address, serving)
    }

    #[test]
    fn every_connection_is_counted_once() {
        let (address, serving) = serve(|mut stream| {
            let mut message = [0; 16];
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
            assert_eq!(stream.read(&mut message)?, 0);
            Ok(())
        });
        let mut load = Churn::new(address, 3, 16).unwrap();
        let count = load.run(RunSpec::of(Duration::from_millis(30))).unwrap();
        assert_eq!(count.lost, 0);
        // A connection without a message ends the server.
        drop(TcpStream::connect(address).unwrap());
        assert_eq!(serving.join().unwrap(), count.answered);
        assert!(count.answered >= 3);
    }

    #[test]
    fn server_that_does_not_answer_is_an_error() {
        let (address, serving) = serve(|mut stream| stream.read_exact(&mut [0; 16]));
        let mut load = Churn::new(address, 1, 16).unwrap();
        assert!(load.run(RunSpec::of(Duration::from_millis(20))).is_err());
        drop(TcpStream::connect(address).unwrap());
        serving.join().unwrap();
    }
}
