//! Clients that there is no room for: those who may wait do so in order and not for ever, those who
//! may not are told, and are closed in such a way that they hear it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails, or is skipped"
)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::client::Endpoint;
use common::process::{Companion, errand, told};
use common::running::{Running, echo};
use common::{PATIENCE, eventually};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socketserver::transport::Tcp;
use socketserver::{
    Admission, Concurrency, Displacement, Event, OverloadPolicy, Pooled, RequestState, Server,
    Threading, ThreadingTcpServer,
};

/// It has the kernel's attention only where there is room, and takes part in each test with a policy
/// of its own.
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

/// A server for one client at a time.
fn serve<C: Limited>(policy: OverloadPolicy, notice: &str) -> Full {
    let (told, rejections) = channel();
    let server = Server::<Tcp, C>::builder()
        .concurrency(C::with(policy))
        .admission(Admission::new().max_active(1))
        .rejection_message(notice)
        .on_event(move |event| {
            if let Event::Rejected(_, reason) = event {
                let _ = told.send(reason.to_string());
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
            unreachable!("it is TCP");
        };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn states(&self) -> Vec<RequestState> {
        let live = self.running.handle.active();
        live.iter().map(|request| request.state).collect()
    }

    fn rejection(&self) -> String {
        self.rejections.recv_timeout(PATIENCE).unwrap()
    }
}

#[track_caller]
fn is_served(stream: &mut TcpStream) {
    stream.write_all(b"hello\n").unwrap();
    stream.read_exact(&mut [0; 6]).unwrap();
}

const PLACES: usize = 2;

fn queue(patience: Duration) -> OverloadPolicy {
    OverloadPolicy::Queue {
        patience,
        places: PLACES,
    }
}

fn the_next_wait_in_order<C: Limited>() {
    let server = serve::<C>(queue(PATIENCE), "");
    let mut first = server.connect();
    is_served(&mut first);
    let mut waiting = Vec::new();
    for n in 1..=PLACES {
        waiting.push(server.connect());
        eventually(PATIENCE, "a place in the queue", || {
            server.states().len() == 1 + n
        });
    }
    use RequestState::{Queued, Serving};
    assert_eq!(server.states(), [Serving, Queued, Queued]);
    // No place is left.
    assert_eq!(server.connect().read(&mut [0]).unwrap(), 0);
    assert_eq!(server.rejection(), "at the limit");
    for mut next in waiting {
        drop(first);
        is_served(&mut next);
        first = next;
    }
    assert!(server.rejections.try_recv().is_err());
}

fn who_waits_alone_is_served_once_there_is_room<C: Limited>() {
    // Nothing else wakes the server up before that: no further client, and no end of patience.
    let server = serve::<C>(queue(10 * PATIENCE), "");
    let mut first = server.connect();
    is_served(&mut first);
    let mut second = server.connect();
    eventually(PATIENCE, "a place in the queue", || {
        server.running.handle.queued_count() == 1
    });
    drop(first);
    is_served(&mut second);
}

fn nobody_waits_for_ever<C: Limited>() {
    const PATIENCE_OF_ONE: Duration = Duration::from_millis(300);
    let server = serve::<C>(queue(PATIENCE_OF_ONE), "full\n");
    let mut first = server.connect();
    is_served(&mut first);
    let started = Instant::now();
    let mut second = server.connect();
    second.write_all(b"are you there?\n").unwrap();
    let mut answer = String::new();
    second.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "full\n");
    assert!(started.elapsed() >= PATIENCE_OF_ONE);
    assert_eq!(server.rejection(), "at the limit");
    is_served(&mut first);
}

fn a_drain_serves_the_queue<C: Limited>() {
    let server = serve::<C>(queue(PATIENCE), "");
    let mut first = server.connect();
    is_served(&mut first);
    let mut second = server.connect();
    eventually(PATIENCE, "a place in the queue", || {
        server.states().len() == 2
    });
    let handle = server.running.handle.clone();
    handle.drain(PATIENCE);
    drop(first);
    is_served(&mut second);
    drop(second);
    server.running.ends().unwrap();
    assert_eq!(handle.drain_report().unwrap().refused, 0);
    assert_eq!(handle.counters().refused, 0);
}

fn a_drain_refuses_the_queue_when_its_time_is_over<C: Limited>() {
    let server = serve::<C>(queue(PATIENCE), "not today\n");
    let mut first = server.connect();
    is_served(&mut first);
    let mut second = server.connect();
    eventually(PATIENCE, "a place in the queue", || {
        server.states().len() == 2
    });
    let handle = server.running.handle.clone();
    handle.drain(Duration::from_millis(100));
    let mut answer = String::new();
    second.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "not today\n");
    server.running.ends().unwrap();
    let report = handle.drain_report().unwrap();
    assert_eq!((report.refused, report.cancelled), (1, 1));
}

fn who_is_refused_hears_why_even_if_he_talks<C: Limited>() {
    let server = serve::<C>(OverloadPolicy::Reject, "busy\n");
    let mut first = server.connect();
    is_served(&mut first);
    for _ in 0..20 {
        let mut talker = server.connect();
        // A reset would take the notice away: some is sent before it is accepted, some afterwards.
        let _ = talker.write_all(&[b'x'; 5000]);
        assert_eq!(server.rejection(), "at the limit");
        let _ = talker.write_all(&[b'x'; 5000]);
        let mut answer = String::new();
        talker.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "busy\n");
    }
    // More than may linger; then all descriptors are back.
    let crowd: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for mut one in crowd {
        let mut answer = String::new();
        one.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "busy\n");
    }
    is_served(&mut first);
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
    the_next_wait_in_order
    who_waits_alone_is_served_once_there_is_room
    nobody_waits_for_ever
    a_drain_serves_the_queue
    a_drain_refuses_the_queue_when_its_time_is_over
    who_is_refused_hears_why_even_if_he_talks
}

#[test]
fn a_notice_that_is_too_long_is_refused() {
    let error = ThreadingTcpServer::builder()
        .rejection_message([b'x'; 1025])
        .bind("127.0.0.1:0", echo())
        .unwrap_err();
    assert!(error.to_string().contains("1024"), "{error}");
}

#[test]
fn descriptors_of_those_who_linger_come_back() {
    let server = serve::<Threading>(OverloadPolicy::Reject, "busy\n");
    let mut first = server.connect();
    is_served(&mut first);
    let started = Instant::now();
    let mut second = server.connect();
    second.read_exact(&mut [0; 5]).unwrap();
    // It keeps its end open, and after a second the server is through with it all the same: it
    // answers with a reset.
    eventually(PATIENCE, "a reset", || match second.write(b"x") {
        Err(error) => matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ),
        Ok(_) => false,
    });
    assert!(
        started.elapsed() > Duration::from_millis(500),
        "it was not given time"
    );
    assert_eq!(server.running.handle.active_count(), 1);
}

#[test]
fn who_lingers_does_not_keep_a_drain_awake() {
    let asked = AtomicUsize::new(0);
    let server = ThreadingTcpServer::builder()
        .concurrency(Threading::new().max_threads(2))
        .verify_request(move |_| Ok(asked.fetch_add(1, Ordering::SeqCst) != 1))
        .rejection_message("no\n")
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let (_, rejections) = channel();
    let server = Full {
        running: Running::start(server),
        rejections,
    };
    let mut first = server.connect();
    is_served(&mut first);
    let mut refused = server.connect();
    refused.read_exact(&mut [0; 3]).unwrap();
    let mut last = server.connect();
    is_served(&mut last);
    // It cannot tell whether the backlog is empty before there is room.
    server.running.handle.drain(10 * PATIENCE);
    eventually(PATIENCE, "a reset", || refused.write(b"x").is_err());
}

#[test]
fn a_drain_serves_who_came_when_the_limit_had_been_lowered() {
    let (_, rejections) = channel();
    let server = Full {
        running: Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap()),
        rejections,
    };
    let mut first = server.connect();
    is_served(&mut first);
    is_served(&mut server.connect());
    let handle = server.running.handle.clone();
    eventually(PATIENCE, "one client", || handle.active_count() == 1);
    handle.set_admission(Admission::new().max_active(1));
    let mut second = server.connect();
    handle.drain(PATIENCE);
    eventually(PATIENCE, "a drain", || handle.counters().drains == 1);
    drop(first);
    is_served(&mut second);
}

#[test]
fn out_of_descriptors_clients_are_told() {
    const NAME: &str = "out_of_descriptors_clients_are_told";
    if errand().is_some() {
        return refuse_with_few_descriptors();
    }
    let mut sidecar = Companion::start(NAME, "serve");
    let address: std::net::SocketAddr = sidecar.hears("address ").parse().unwrap();
    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut clients: Vec<_> = (0..60).map(|_| connect()).collect();
    let mut refused = 0;
    for client in &mut clients {
        let _ = client.write_all(b"hello\n");
        let _ = client.shutdown(Shutdown::Write);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        match &*answer {
            "busy\n" => refused += 1,
            other => assert_eq!(other, "hello\n"),
        }
    }
    assert!((1..60).contains(&refused), "{refused}");
    sidecar.hears("out of descriptors");
    // There is room again.
    is_served(&mut connect());
    sidecar.tell("report");
    assert_eq!(sidecar.hears("refused "), refused.to_string());
    sidecar.passes();
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
    assert_eq!(told(), "report");
    println!("refused {}", running.handle.counters().refused);
    let _ = std::io::stdout().flush();
}
