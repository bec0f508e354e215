//! Clients that each connect, send one message, wait for it to come back, and close.
//!
//! A client ends its output once it has the answer, and waits for the server to close: a connection
//! that is counted is one that the server has seen the end of. As the client is the first to close,
//! `TIME_WAIT` stays with it, as with most clients; and so that this does not use up its ports,
//! connections come from 250 loopback addresses in turn. (A client that resets its connection would
//! leave none, but would take every server the way of an error.)

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use anyhow::{Context, ensure};
use rustix::event::epoll;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};

use super::message::{Messages, send};
use super::{BUFFER, ClosedLoop, Load, Order, Outcome, receive, watch};
use crate::machine::set_congestion_control;

pub(super) struct Churn {
    epoll: OwnedFd,
    server: SocketAddr,
    clients: Vec<Option<Client>>,
    messages: Messages,
    /// The last byte of the next source address.
    source: u8,
    /// How many connections there were.
    begun: u32,
    buf: Vec<u8>,
}

struct Client {
    stream: OwnedFd,
    /// Which message it has sent.
    message: u32,
    /// So many bytes of it have come back; after all of them, the end comes.
    received: usize,
}

impl Churn {
    pub(super) fn new(server: SocketAddr, clients: usize, size: usize) -> anyhow::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            server,
            clients: (0..clients).map(|_| None).collect(),
            messages: Messages::new(size)?,
            begun: 0,
            buf: vec![0; BUFFER],
            source: 1,
        })
    }
}

impl ClosedLoop for Churn {
    fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// The client connects anew. On a loopback that does not take long: it blocks.
    fn begin(&mut self, number: usize) -> anyhow::Result<()> {
        let kind = SocketType::STREAM;
        let stream =
            rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
        let source = SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, self.source), 0);
        self.source = self.source % 250 + 1;
        set_congestion_control(&stream);
        rustix::net::bind(&stream, &source).context("no port is left")?;
        rustix::net::connect(&stream, &self.server).context("cannot connect")?;
        self.begun = self.begun.wrapping_add(1);
        send(&stream, self.messages.of(number, self.begun))?;
        watch(&self.epoll, &stream, number)?;
        self.clients[number] = Some(Client {
            stream,
            message: self.begun,
            received: 0,
        });
        Ok(())
    }

    fn hear(&mut self, number: usize) -> anyhow::Result<bool> {
        let Some(client) = &mut self.clients[number] else {
            return Ok(false);
        };
        let Some(bytes) = receive(&client.stream, &mut self.buf)? else {
            return Ok(false);
        };
        if bytes.is_empty() {
            let has_all = client.received == self.messages.size();
            ensure!(has_all, "the server closed too early");
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
    fn run(&mut self, order: Order) -> anyhow::Result<Outcome> {
        self.go_round(0..self.clients.len(), order.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    /// Serves one connection after the other, until one is an error; says how many there were.
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
        let count = load.run(Order::of(Duration::from_millis(30))).unwrap();
        assert_eq!(count.lost, 0);
        // One that says nothing ends the server.
        drop(TcpStream::connect(address).unwrap());
        assert_eq!(serving.join().unwrap(), count.answered);
        assert!(count.answered >= 3);
    }

    #[test]
    fn a_server_that_does_not_answer_is_an_error() {
        let (address, serving) = serve(|mut stream| stream.read_exact(&mut [0; 16]));
        let mut load = Churn::new(address, 1, 16).unwrap();
        assert!(load.run(Order::of(Duration::from_millis(20))).is_err());
        drop(TcpStream::connect(address).unwrap());
        serving.join().unwrap();
    }
}
