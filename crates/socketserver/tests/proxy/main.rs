//! The PROXY protocol: the server serves the client that a trusted proxy names, and treats the
//! header of an untrusted peer as data.
//!
//! | File | Contents |
//! |---|---|
//! | `naming.rs` | headers of both versions, in parts and glued, and the addresses they set |
//! | `hostile.rs` | invalid, late and missing headers, and headers from untrusted peers |
//! | `admission.rs` | rules and limits on the clients behind one proxy |
//!
//! The tests of the programs cover forked children.

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

mod admission;
#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod naming;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::client::Endpoint;
use common::running::Running;
use common::{TIMEOUT, eventually};
use rustix::net::{AddressFamily, SocketType};
use socketserver::transport::{StreamTransport, Tcp};
use socketserver::{
    Builder, Concurrency, Connection, Event, ProxyProtocol, RequestHandler, Result, Server,
};

/// Runs scenarios with one client at a time under the models with threads for handlers and under
/// the sequential model.
macro_rules! under_every_model {
    ($($scenario:ident)*) => {
        crate::common::under_each_model! { $($scenario)* }
        mod sequential {
            $(#[test] fn $scenario() { super::$scenario(socketserver::Sequential); })*
        }
    };
}
pub(crate) use under_every_model;

/// Greets the client with its addresses, and returns each line. It suspends the connection between
/// two lines.
struct Named;

impl RequestHandler<Connection> for Named {
    fn setup(&mut self, conn: &mut Connection) -> Result<()> {
        let proxy = conn.proxy_addr().map_or("-".into(), ToString::to_string);
        let local = conn.local_addr()?;
        let greeting = format!("{} to {local} by {proxy}\n", conn.peer_addr());
        Ok(conn.write_all(greeting.as_bytes())?)
    }

    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        let mut line = Vec::new();
        conn.read_until(b'\n', &mut line)?;
        conn.write_all(&line)?;
        conn.suspend_until_readable();
        Ok(())
    }
}

/// A server with its events.
struct Fixture {
    running: Running,
    /// The number of handlers that were created.
    created: Arc<AtomicUsize>,
    events: Receiver<String>,
}

/// The address of the proxies in most tests.
const PROXY: &str = "127.0.0.1";

fn trusted() -> ProxyProtocol {
    ProxyProtocol::new().trust(PROXY.parse().unwrap())
}

fn serve<C: Concurrency>(
    model: C,
    options: impl FnOnce(Builder<Tcp, C>) -> Builder<Tcp, C>,
) -> Fixture {
    let builder = Server::<Tcp, C>::builder().concurrency(model);
    Fixture::of(options(builder), |builder, created| {
        let factory = move || {
            created.fetch_add(1, Ordering::SeqCst);
            Named
        };
        Running::start(builder.bind("127.0.0.1:0", factory).unwrap())
    })
}

impl Fixture {
    fn of<T: StreamTransport, C: Concurrency>(
        builder: Builder<T, C>,
        start: impl FnOnce(Builder<T, C>, Arc<AtomicUsize>) -> Running,
    ) -> Self {
        let (tx, events) = channel();
        let builder = builder.on_event(move |event| {
            let line = match event {
                Event::Started(r) => format!("started {} {}", r.id(), r.peer()),
                Event::Rejected(r, why) => format!("rejected {}: {why}", peer(r.peer())),
                Event::Ended(r, end) => format!("ended {}: {}", peer(r.peer()), end.reason),
                _ => return,
            };
            let _ = tx.send(line);
        });
        let created = Arc::new(AtomicUsize::new(0));
        Self {
            running: start(builder, created.clone()),
            created,
            events,
        }
    }

    fn address(&self) -> SocketAddr {
        match self.running.endpoint {
            Endpoint::Tcp(address) => address,
            _ => unreachable!("the transport is TCP"),
        }
    }

    /// Opens a connection of the proxy, without a header.
    fn proxy(&self) -> TestClient {
        self.connect(PROXY)
    }

    /// Opens a connection from one of this machine's addresses.
    fn connect(&self, from: &str) -> TestClient {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let from = SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0);
        rustix::net::bind(&socket, &from).unwrap();
        rustix::net::connect(&socket, &self.address()).unwrap();
        TestClient::new(TcpStream::from(socket))
    }

    /// Opens a connection of a client with this address through the proxy.
    fn client(&self, ip: &str) -> TestClient {
        let mut client = self.proxy();
        client.send(&line_of(ip));
        client
    }

    /// Waits for the next event that begins with this text.
    #[track_caller]
    fn expect_event(&self, begin: &str) -> String {
        loop {
            match self.events.recv_timeout(TIMEOUT) {
                Ok(line) if line.starts_with(begin) => return line,
                Ok(_) => {}
                Err(_) => panic!("no event begins with {begin:?}"),
            }
        }
    }

    fn created(&self) -> usize {
        self.created.load(Ordering::SeqCst)
    }

    /// Waits until no request is active.
    #[track_caller]
    fn wait_until_idle(&self) {
        let handle = &self.running.handle;
        eventually(TIMEOUT, "all requests to end", || {
            handle.active_count() == 0
        });
    }
}

/// Returns a header of version 1 for a client with this address.
fn line_of(ip: &str) -> Vec<u8> {
    format!("PROXY TCP4 {ip} 198.51.100.1 4000 80\r\n").into_bytes()
}

/// Returns a header of version 2.
fn block_of(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    [signature, &[command, family][..], &length, block].concat()
}

/// Returns the address without its random port.
fn peer(address: &socketserver::Address) -> String {
    match address.as_inet() {
        Some(inet) => inet.ip().to_string(),
        None => address.to_string(),
    }
}

/// A connection of a client, all of whose calls have a timeout.
struct TestClient(BufReader<TcpStream>);

impl TestClient {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// Returns the next line; empty at the end or after a reset.
    #[track_caller]
    fn receive_line(&mut self) -> String {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(_) => line.trim_end().to_owned(),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => String::new(),
            Err(error) => panic!("{error}"),
        }
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\n").as_bytes());
        self.receive_line()
    }

    /// Returns true if the server closes or resets the connection without sending another byte.
    fn was_closed(mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    fn half_close(&self) {
        let _ = self.0.get_ref().shutdown(std::net::Shutdown::Write);
    }

    fn name(&self) -> SocketAddr {
        self.0.get_ref().local_addr().unwrap()
    }
}

/// A time that a test waits for completely.
const SHORT: Duration = Duration::from_millis(300);
