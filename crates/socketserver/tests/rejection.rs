//! Clients beyond the limit. Queued clients are served in order and wait for a limited time.
//! Rejected clients receive a message, and are closed so that the message arrives.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails or is skipped"
)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::client::Endpoint;
use common::process::{TestProcess, child_role, read_stdin_line};
use common::running::{Running, echo};
use common::{TIMEOUT, eventually};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socketserver::transport::Tcp;
use socketserver::{
    Admission, Concurrency, Displacement, Event, OverloadPolicy, Pooled, RequestState, Server,
    Threading, ThreadingTcpServer,
};

/// A model with a limit, built with the overload policy of a test.
trait Limited: Concurrency {
    fn with(policy: OverloadPolicy) -> Self;
}

impl Limited for Threading {
    fn with(policy: OverloadPolicy) -> Self {
        Self::new().overload_policy(policy)
    }
}

impl Limited for Pooled {
    fn with(policy: OverloadPolicy) -> Self {
        Self::new().overload_policy(policy)
    }
}

#[cfg(feature = "green")]
impl Limited for socketserver::Green {
    fn with(policy: OverloadPolicy) -> Self {
        Self::new().overload_policy(policy)
    }
}

struct Full {
    running: Running,
    rejections: Receiver<String>,
}

/// Starts a server for one client at a time.
fn serve<C: Limited>(policy: OverloadPolicy, message: &str) -> Full {
    let (tx, rejections) = channel();
    let server = Server::<Tcp, C>::builder()
        .concurrency(C::with(policy))
        .admission(Admission::new().max_active(1))
        .rejection_message(message)
        .on_event(move |event| {
            if let Event::Rejected(_, reason) = event {
                let _ = tx.send(reason.to_string());
            }
        })
        .bind("127.0.0.1:0", echo())
        .unwrap();
    Full {
        running: Running::start(server),
        rejections,
    }
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

    fn states(&self) -> Vec<RequestState> {
        let live = self.running.handle.active();
        live.iter().map(|request| request.state).collect()
    }

    fn rejection(&self) -> String {
        self.rejections.recv_timeout(TIMEOUT).unwrap()
    }
}

#[track_caller]
fn assert_served(stream: &mut TcpStream) {
    stream.write_all(b"hello\n").unwrap();
    stream.read_exact(&mut [0; 6]).unwrap();
}

const QUEUE_CAPACITY: usize = 2;

fn queue(timeout: Duration) -> OverloadPolicy {
    OverloadPolicy::Queue {
        patience: timeout,
        places: QUEUE_CAPACITY,
    }
}

fn queued_clients_are_served_in_order<C: Limited>() {
    let server = serve::<C>(queue(TIMEOUT), "");
    let mut first = server.connect();
    assert_served(&mut first);
    let mut waiting = Vec::new();
    for n in 1..=QUEUE_CAPACITY {
        waiting.push(server.connect());
        eventually(TIMEOUT, "the client to be queued", || {
            server.states().len() == 1 + n
        });
    }
    use RequestState::{Queued, Serving};
    assert_eq!(server.states(), [Serving, Queued, Queued]);
    // The queue is full.
    assert_eq!(server.connect().read(&mut [0]).unwrap(), 0);
    assert_eq!(server.rejection(), "at the limit");
    for mut next in waiting {
        drop(first);
        assert_served(&mut next);
        first = next;
    }
    assert!(server.rejections.try_recv().is_err());
}

fn queued_client_is_served_when_a_slot_is_free<C: Limited>() {
    // No other event wakes the server before that: no further client, and no timeout of the queue.
    let server = serve::<C>(queue(10 * TIMEOUT), "");
    let mut first = server.connect();
    assert_served(&mut first);
    let mut second = server.connect();
    eventually(TIMEOUT, "the client to be queued", || {
        server.running.handle.queued_count() == 1
    });
    drop(first);
    assert_served(&mut second);
}

fn queued_client_is_rejected_at_its_timeout<C: Limited>() {
    const QUEUE_TIMEOUT: Duration = Duration::from_millis(300);
    let server = serve::<C>(queue(QUEUE_TIMEOUT), "full\n");
    let mut first = server.connect();
    assert_served(&mut first);
    let started = Instant::now();
    let mut second = server.connect();
    second.write_all(b"hello\n").unwrap();
    let mut answer = String::new();
    second.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "full\n");
    assert!(started.elapsed() >= QUEUE_TIMEOUT);
    assert_eq!(server.rejection(), "at the limit");
    assert_served(&mut first);
}

fn drain_serves_the_queue<C: Limited>() {
    let server = serve::<C>(queue(TIMEOUT), "");
    let mut first = server.connect();
    assert_served(&mut first);
    let mut second = server.connect();
    eventually(TIMEOUT, "the client to be queued", || {
        server.states().len() == 2
    });
    let handle = server.running.handle.clone();
    handle.drain(TIMEOUT);
    drop(first);
    assert_served(&mut second);
    drop(second);
    server.running.wait_until_stopped().unwrap();
    assert_eq!(handle.drain_report().unwrap().refused, 0);
    assert_eq!(handle.counters().refused, 0);
}

fn drain_rejects_the_queue_at_its_deadline<C: Limited>() {
    let server = serve::<C>(queue(TIMEOUT), "shutting down\n");
    let mut first = server.connect();
    assert_served(&mut first);
    let mut second = server.connect();
    eventually(TIMEOUT, "the client to be queued", || {
        server.states().len() == 2
    });
    let handle = server.running.handle.clone();
    handle.drain(Duration::from_millis(100));
    let mut answer = String::new();
    second.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "shutting down\n");
    server.running.wait_until_stopped().unwrap();
    let report = handle.drain_report().unwrap();
    assert_eq!((report.refused, report.cancelled), (1, 1));
}

fn rejected_client_receives_the_message_although_it_sends<C: Limited>() {
    let server = serve::<C>(OverloadPolicy::Reject, "busy\n");
    let mut first = server.connect();
    assert_served(&mut first);
    for _ in 0..20 {
        let mut sender = server.connect();
        // A reset would destroy the message. Some bytes are sent before the accept, and some after
        // it.
        let _ = sender.write_all(&[b'x'; 5000]);
        assert_eq!(server.rejection(), "at the limit");
        let _ = sender.write_all(&[b'x'; 5000]);
        let mut answer = String::new();
        sender.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "busy\n");
    }
    // More clients than may linger; afterwards all descriptors are closed.
    let clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for mut one in clients {
        let mut answer = String::new();
        one.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "busy\n");
    }
    assert_served(&mut first);
}

macro_rules! under_each {
    ($($scenario:ident)*) => {
        mod threading { $(#[test] fn $scenario() { super::$scenario::<super::Threading>(); })* }
        mod pooled { $(#[test] fn $scenario() { super::$scenario::<super::Pooled>(); })* }
        #[cfg(feature = "green")]
        mod green { $(#[test] fn $scenario() { super::$scenario::<socketserver::Green>(); })* }
    };
}

under_each! {
    queued_clients_are_served_in_order
    queued_client_is_served_when_a_slot_is_free
    queued_client_is_rejected_at_its_timeout
    drain_serves_the_queue
    drain_rejects_the_queue_at_its_deadline
    rejected_client_receives_the_message_although_it_sends
}

#[test]
fn too_long_rejection_message_is_an_error() {
    let error = ThreadingTcpServer::builder()
        .rejection_message([b'x'; 1025])
        .bind("127.0.0.1:0", echo())
        .unwrap_err();
    assert!(error.to_string().contains("1024"), "{error}");
}

#[test]
fn lingering_client_is_closed_after_one_second() {
    let server = serve::<Threading>(OverloadPolicy::Reject, "busy\n");
    let mut first = server.connect();
    assert_served(&mut first);
    let started = Instant::now();
    let mut second = server.connect();
    second.read_exact(&mut [0; 5]).unwrap();
    // The client keeps its end open. After 1 s the server closes its end, and replies with a reset.
    eventually(TIMEOUT, "a reset", || match second.write(b"x") {
        Err(error) => matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ),
        Ok(_) => false,
    });
    assert!(
        started.elapsed() > Duration::from_millis(500),
        "the client was closed too early"
    );
    assert_eq!(server.running.handle.active_count(), 1);
}

#[test]
fn lingering_client_is_closed_during_a_drain() {
    let calls = AtomicUsize::new(0);
    let server = ThreadingTcpServer::builder()
        .concurrency(Threading::new().max_threads(2))
        .verify_request(move |_| Ok(calls.fetch_add(1, Ordering::SeqCst) != 1))
        .rejection_message("no\n")
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let (_, rejections) = channel();
    let server = Full {
        running: Running::start(server),
        rejections,
    };
    let mut first = server.connect();
    assert_served(&mut first);
    let mut rejected = server.connect();
    rejected.read_exact(&mut [0; 3]).unwrap();
    let mut last = server.connect();
    assert_served(&mut last);
    // The drain cannot see whether the backlog is empty before a slot is free.
    server.running.handle.drain(10 * TIMEOUT);
    eventually(TIMEOUT, "a reset", || rejected.write(b"x").is_err());
}

#[test]
fn drain_serves_the_backlog_after_the_limit_was_lowered() {
    let (_, rejections) = channel();
    let server = Full {
        running: Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap()),
        rejections,
    };
    let mut first = server.connect();
    assert_served(&mut first);
    assert_served(&mut server.connect());
    let handle = server.running.handle.clone();
    eventually(TIMEOUT, "one client", || handle.active_count() == 1);
    handle.set_admission(Admission::new().max_active(1));
    let mut second = server.connect();
    handle.drain(TIMEOUT);
    eventually(TIMEOUT, "a drain", || handle.counters().drains == 1);
    drop(first);
    assert_served(&mut second);
}

#[test]
fn clients_are_rejected_without_descriptors() {
    const NAME: &str = "clients_are_rejected_without_descriptors";
    if child_role().is_some() {
        return refuse_with_few_descriptors();
    }
    let mut sidecar = TestProcess::start(NAME, "serve");
    let address: std::net::SocketAddr = sidecar.expect_line("address ").parse().unwrap();
    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    };
    let mut clients: Vec<_> = (0..60).map(|_| connect()).collect();
    let mut rejected = 0;
    for client in &mut clients {
        let _ = client.write_all(b"hello\n");
        let _ = client.shutdown(Shutdown::Write);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        match &*answer {
            "busy\n" => rejected += 1,
            other => assert_eq!(other, "hello\n"),
        }
    }
    assert!((1..60).contains(&rejected), "{rejected}");
    sidecar.expect_line("out of descriptors");
    // Descriptors are available again.
    assert_served(&mut connect());
    sidecar.send_line("report");
    assert_eq!(sidecar.expect_line("rejected "), rejected.to_string());
    sidecar.assert_passed();
}

fn refuse_with_few_descriptors() {
    let server = ThreadingTcpServer::builder()
        .concurrency(Threading::new().overload_policy(OverloadPolicy::Reject))
        .rejection_message("busy\n")
        // They are silent for as long as this machine lets them wait.
        .displacement(Displacement::off())
        .on_event(move |event| {
            if let Event::OutOfDescriptors { .. } = event {
                println!("out of descriptors");
            }
        })
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let few = Rlimit {
        current: Some(32),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    setrlimit(Resource::Nofile, few).unwrap();
    println!("address {}", server.local_addr());
    let running = Running::start(server);
    assert_eq!(read_stdin_line(), "report");
    println!("rejected {}", running.handle.counters().refused);
    let _ = std::io::stdout().flush();
}
