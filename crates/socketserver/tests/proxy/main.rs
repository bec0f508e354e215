//! Clients behind a proxy that speaks the PROXY protocol, as the proxy sees the server: whom it
//! names is served, and whoever is not allowed to name anybody is not believed.
//!
//! | File | What it has |
//! |---|---|
//! | `naming.rs` | headers of both versions, however they arrive, and what is known from then on |
//! | `hostile.rs` | what is no header, comes too late or never, and who is not trusted |
//! | `admission.rs` | rules and limits on the clients behind one proxy |
//!
//! Forked children are tried by the tests of the programs.

#![allow(clippy::unwrap_used, reason = "a test says why it fails")]

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
use common::{PATIENCE, eventually};
use rustix::net::{AddressFamily, SocketType};
use socketserver::transport::{StreamTransport, Tcp};
use socketserver::{
    Builder, Concurrency, Connection, Event, ProxyProtocol, RequestHandler, Result, Server,
};

/// Runs scenarios of one client at a time under the models that have a thread for handlers, and
/// under the one that has none.
macro_rules! under_every_model {
    ($($scenario:ident)*) => {
        crate::common::under_each_model! { $($scenario)* }
        mod sequential {
            $(#[test] fn $scenario() { super::$scenario(socketserver::Sequential); })*
        }
    };
}
pub(crate) use under_every_model;

/// Says who the client is, and returns lines. Between two of them it is not there.
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

/// A server, and what it tells.
struct Fixture {
    running: Running,
    /// Handlers made so far.
    made: Arc<AtomicUsize>,
    told: Receiver<String>,
}

/// The proxies of most tests are at this address.
const PROXY: &str = "127.0.0.1";

fn trusted() -> ProxyProtocol {
    ProxyProtocol::new().trust(PROXY.parse().unwrap())
}

fn serve<C: Concurrency>(
    model: C,
    options: impl FnOnce(Builder<Tcp, C>) -> Builder<Tcp, C>,
) -> Fixture {
    let builder = Server::<Tcp, C>::builder().concurrency(model);
    Fixture::of(options(builder), |builder, made| {
        let factory = move || {
            made.fetch_add(1, Ordering::SeqCst);
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
        let (tell, told) = channel();
        let builder = builder.on_event(move |event| {
            let line = match event {
                Event::Started(r) => format!("started {} {}", r.id(), r.peer()),
                Event::Rejected(r, why) => format!("refused {}: {why}", peer(r.peer())),
                Event::Ended(r, end) => format!("ended {}: {}", peer(r.peer()), end.reason),
                _ => return,
            };
            let _ = tell.send(line);
        });
        let made = Arc::new(AtomicUsize::new(0));
        Self {
            running: start(builder, made.clone()),
            made,
            told,
        }
    }

    fn address(&self) -> SocketAddr {
        match self.running.endpoint {
            Endpoint::Tcp(address) => address,
            _ => unreachable!("it is TCP"),
        }
    }

    /// A connection of the proxy that has said nothing yet.
    fn proxy(&self) -> Wire {
        self.connect(PROXY)
    }

    /// A connection from one of this machine's addresses.
    fn connect(&self, from: &str) -> Wire {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let from = SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0);
        rustix::net::bind(&socket, &from).unwrap();
        rustix::net::connect(&socket, &self.address()).unwrap();
        Wire::new(TcpStream::from(socket))
    }

    /// A client of this address by the proxy.
    fn client(&self, ip: &str) -> Wire {
        let mut wire = self.proxy();
        wire.send(&line_of(ip));
        wire
    }

    /// The next thing told that begins so.
    #[track_caller]
    fn tells(&self, begin: &str) -> String {
        loop {
            match self.told.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with(begin) => return line,
                Ok(_) => {}
                Err(_) => panic!("{begin:?} is not told"),
            }
        }
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    /// Waits until nobody is served any more.
    #[track_caller]
    fn rests(&self) {
        let handle = &self.running.handle;
        eventually(PATIENCE, "nothing live", || handle.active_count() == 0);
    }
}

/// The header of a client of this address, in version 1.
fn line_of(ip: &str) -> Vec<u8> {
    format!("PROXY TCP4 {ip} 198.51.100.1 4000 80\r\n").into_bytes()
}

/// A header of version 2.
fn block_of(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    [signature, &[command, family][..], &length, block].concat()
}

/// Without the port, which nobody has chosen.
fn peer(address: &socketserver::Address) -> String {
    match address.as_inet() {
        Some(inet) => inet.ip().to_string(),
        None => address.to_string(),
    }
}

/// A connection as its client has it, all of whose calls have a deadline.
struct Wire(BufReader<TcpStream>);

impl Wire {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// The next line; empty at the end, however that came.
    #[track_caller]
    fn hear(&mut self) -> String {
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
        self.hear()
    }

    /// Whether the server closes without a word, orderly or by a reset.
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

/// A time that a test waits for in full.
const SHORT: Duration = Duration::from_millis(300);
