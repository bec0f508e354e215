//! Displacement at the limit: silent and idle connections are closed for a waiting client;
//! connections with progress are not.

#![allow(
    clippy::unwrap_used,
    reason = "a test prints why it fails or is skipped"
)]

mod common;

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::client::Endpoint;
use common::running::{Running, echo};
use common::{TIMEOUT, eventually, under_each_model};
use rustix::net::sockopt;
#[cfg(feature = "green")]
use socketserver::greenroom;
use socketserver::transport::Tcp;
use socketserver::{
    Admission, Builder, Concurrency, Connection, Displacement, EndReason, Event, OverloadPolicy,
    Pooled, RequestHandler, Result, Server, Threading, Timeouts, handler_fn,
};

/// The maximum number of active requests of each server.
const MAX_ACTIVE: usize = 4;

/// Longer than the time before a silent connection is displaced, and shorter than that of an idle
/// one.
const BETWEEN: Duration = Duration::from_secs(1);

struct Full {
    running: Running,
    events: Receiver<String>,
}

fn builder<C: Concurrency>(model: C) -> Builder<Tcp, C> {
    Server::<Tcp, C>::builder()
        .concurrency(model)
        .admission(Admission::new().max_active(MAX_ACTIVE))
}

fn start<C, F, H>(builder: Builder<Tcp, C>, handler: F) -> Full
where
    C: Concurrency,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<Connection> + 'static,
{
    let (tx, events) = channel();
    let builder = builder.on_event(move |event| {
        if let Event::DisplacementStarted { .. } = event {
            let _ = tx.send(format!("{event:?}"));
        }
    });
    let running = Running::start(builder.bind("127.0.0.1:0", handler).unwrap());
    Full { running, events }
}

impl Full {
    fn connect(&self) -> TcpStream {
        let Endpoint::Tcp(address) = self.running.endpoint else {
            unreachable!("the transport is TCP");
        };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// Opens as many connections as the limit allows.
    fn clients(&self) -> Vec<TcpStream> {
        let clients = (0..MAX_ACTIVE).map(|_| self.connect()).collect();
        let is_full = || self.running.handle.active_count() == MAX_ACTIVE;
        eventually(TIMEOUT, "the limit to be reached", is_full);
        clients
    }

    fn displaced(&self) -> u64 {
        self.running.handle.counters().displaced
    }
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"hello\n")?;
    stream.read_exact(&mut [0; 6])
}

#[track_caller]
fn assert_served(stream: &mut TcpStream) {
    ask(stream).expect("the client is not served");
}

/// Returns true if nothing arrives for one second, not even an end of input.
fn receives_nothing(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(BETWEEN)).unwrap();
    let read = stream.read(&mut [0]);
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

fn silent_connections_are_displaced<C: Concurrency>(model: C) {
    let server = start(builder(model), echo());
    let clients = server.clients();
    let start_time = Instant::now();
    for n in 1..=2 {
        assert_served(&mut server.connect());
        assert!(
            start_time.elapsed() < TIMEOUT / 2,
            "{:?}",
            start_time.elapsed()
        );
        assert!(server.displaced() <= n);
    }
    // A connection of the first client that ended may have freed the slot of the second.
    assert!(server.displaced() >= 1);
    let reports: Vec<_> = server.events.try_iter().collect();
    assert_eq!(reports.len(), 1, "{reports:?}");
    let ended = server.running.handle.counters().ends();
    let displaced = ended.into_iter().find(|(reason, _)| *reason == "displaced");
    assert_eq!(displaced, Some(("displaced", server.displaced())));
    drop(clients);
}

/// A part of a line is not a message.
fn connections_with_half_a_message_are_displaced<C: Concurrency>(model: C) {
    let server = start(builder(model), echo());
    let mut clients = server.clients();
    for stream in &mut clients {
        stream.write_all(b"hel").unwrap();
    }
    assert_served(&mut server.connect());
    assert_eq!(server.displaced(), 1);
}

fn idle_connections_are_displaced_after_silent_ones<C: Concurrency>(model: C) {
    let displacement = Displacement::new().idle(Duration::from_millis(600));
    let server = start(builder(model).displacement(displacement), echo());
    let mut first = server.connect();
    assert_served(&mut first);
    let clients: Vec<_> = (1..MAX_ACTIVE).map(|_| server.connect()).collect();
    let mut newcomers = Vec::new();
    for _ in 1..MAX_ACTIVE {
        let mut newcomer = server.connect();
        assert_served(&mut newcomer);
        newcomers.push(newcomer);
    }
    // The silent connections are displaced.
    assert_served(&mut first);
    // All connections are idle now, and the oldest is displaced.
    assert_served(&mut newcomers[0]);
    assert_served(&mut newcomers[1]);
    assert_served(&mut newcomers[2]);
    assert_served(&mut server.connect());
    assert_eq!(server.displaced(), 4);
    assert_eq!(
        first.read(&mut [0]).unwrap_or(0),
        0,
        "the oldest is displaced"
    );
    drop(clients);
}

/// The duration of the computation does not matter.
fn computing_handler_is_never_displaced<C: Concurrency>(model: C) {
    let (release, wait) = channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let handler = handler_fn(move |conn: &mut Connection| {
        let mut line = String::new();
        conn.read_line(&mut line)?;
        // One handler waits for the channel, and the others wait for the lock.
        let wait = wait.clone();
        let waiting = move || drop(wait.lock().map(|wait| wait.recv()));
        compute(waiting);
        Ok(conn.write_all(line.as_bytes())?)
    });
    let server = start(builder(model), handler);
    let mut clients = server.clients();
    for stream in &mut clients {
        stream.write_all(b"hello\n").unwrap();
    }
    let mut newcomer = server.connect();
    newcomer.write_all(b"hello\n").unwrap();
    assert!(receives_nothing(&mut newcomer));
    for _ in 0..=MAX_ACTIVE {
        release.send(()).unwrap();
    }
    for stream in clients.iter_mut().chain([&mut newcomer]) {
        stream.read_exact(&mut [0; 6]).unwrap();
    }
    assert_eq!(server.displaced(), 0);
}

#[cfg(feature = "green")]
fn compute(work: impl FnOnce() + Send + 'static) {
    greenroom::unblock(work);
}

#[cfg(not(feature = "green"))]
fn compute(work: impl FnOnce()) {
    work();
}

/// The server has no minimum send rate, so that only displacement closes these connections.
fn connections_that_hardly_read_are_displaced<C: Concurrency>(model: C) {
    let handler = handler_fn(|conn: &mut Connection| -> Result<()> {
        let mut line = String::new();
        conn.read_line(&mut line)?;
        if line == "much\n" {
            let chunk = [b'x'; 1 << 16];
            loop {
                conn.write_all(&chunk)?;
            }
        }
        Ok(conn.write_all(line.as_bytes())?)
    });
    let timeouts = Timeouts::default().send_rate(None);
    let server = start(builder(model).timeouts(timeouts), handler);
    let mut clients = server.clients();
    for stream in &mut clients {
        // Bytes that the receive buffer holds count as read.
        sockopt::set_socket_recv_buffer_size(&*stream, 4096).unwrap();
        stream.write_all(b"much\n").unwrap();
    }
    // One client reads as fast as it can.
    let mut reader = clients.pop().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let seen = is_over.clone();
    let reading = std::thread::spawn(move || {
        let (mut chunk, mut reads) = (vec![0; 1 << 16], 0);
        while !seen.load(Ordering::Relaxed) {
            match reader.read(&mut chunk) {
                Ok(1..) => reads += 1,
                other => panic!("{other:?} after {reads} reads"),
            }
        }
    });
    assert_served(&mut server.connect());
    assert!(server.displaced() >= 1);
    is_over.store(true, Ordering::Relaxed);
    reading.join().unwrap();
}

fn nothing_is_displaced_if_displacement_is_off<C: Concurrency>(model: C) {
    let server = start(builder(model).displacement(Displacement::off()), echo());
    let mut clients = server.clients();
    let mut newcomer = server.connect();
    newcomer.write_all(b"hello\n").unwrap();
    assert!(receives_nothing(&mut newcomer));
    for stream in &mut clients {
        assert_served(stream);
    }
    clients.pop();
    newcomer.read_exact(&mut [0; 6]).unwrap();
    assert_eq!(server.displaced(), 0);
}

fn nothing_is_displaced_while_no_client_waits<C: Concurrency>(model: C) {
    let displacement = Displacement::new().idle(Duration::from_millis(100));
    let server = start(builder(model).displacement(displacement), echo());
    let mut clients = server.clients();
    assert!(receives_nothing(&mut clients[0]));
    // A client that waited and ended does not wait any more.
    for stream in &mut clients {
        assert_served(stream);
    }
    assert_eq!(server.displaced(), 0);
}

under_each_model! {
    silent_connections_are_displaced
    connections_with_half_a_message_are_displaced
    idle_connections_are_displaced_after_silent_ones
    computing_handler_is_never_displaced
    connections_that_hardly_read_are_displaced
    nothing_is_displaced_if_displacement_is_off
    nothing_is_displaced_while_no_client_waits
}

/// A client that would be rejected gets the slot of a silent connection once that connection has
/// ended.
#[test]
fn silent_connection_is_displaced_instead_of_rejecting_a_client() {
    let model = Threading::new().overload_policy(OverloadPolicy::Reject);
    let server = start(builder(model), echo());
    let clients = server.clients();
    assert!(
        ask(&mut server.connect()).is_err(),
        "the others are new as well"
    );
    std::thread::sleep(Duration::from_millis(600));
    assert_served(&mut server.connect());
    assert_eq!(server.displaced(), 1);
    drop(clients);
}

#[test]
fn connections_on_pool_threads_are_displaced() {
    let (tx, rx) = channel();
    let model = Pooled::new().workers(2).queue(0);
    let builder = Server::<Tcp, Pooled>::builder()
        .concurrency(model)
        .on_event(move |event| {
            if let Event::Ended(_, ended) = event {
                let _ = tx.send(ended.reason);
            }
        });
    let server = start(builder, echo());
    let clients: Vec<_> = (0..2).map(|_| server.connect()).collect();
    assert_served(&mut server.connect());
    assert_eq!(rx.recv_timeout(TIMEOUT).unwrap(), EndReason::Displaced);
    drop(clients);
}
