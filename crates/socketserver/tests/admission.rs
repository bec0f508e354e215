//! Admission control: rules on addresses, limits per address, and rates. All of them can be changed
//! while serving.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::TIMEOUT;
use common::client::Endpoint;
use common::running::{Running, echo, echo_datagram};
use rustix::net::{AddressFamily, SocketType};
use socketserver::transport::{Tcp, Udp, UnixStream};
use socketserver::{Admission, Concurrency, Event, Rate, Sequential, Server};

struct Watched {
    running: Running,
    rejections: mpsc::Receiver<String>,
}

fn tcp<C: Concurrency>(model: C, admission: Admission) -> Watched {
    let (tx, rejections) = mpsc::channel();
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .admission(admission)
        .on_event(move |event| {
            if let Event::Rejected(info, reason) = event {
                let ip = info.peer().as_inet().unwrap().ip();
                let _ = tx.send(format!("{ip}: {reason}"));
            }
        })
        .bind("127.0.0.1:0", echo())
        .unwrap();
    Watched {
        running: Running::start(server),
        rejections,
    }
}

impl Watched {
    fn address(&self) -> SocketAddr {
        match self.running.endpoint {
            Endpoint::Tcp(address) | Endpoint::Udp(address) => address,
            _ => unreachable!("the endpoint has an IP address"),
        }
    }

    fn rejection(&self) -> String {
        self.rejections.recv_timeout(TIMEOUT).unwrap()
    }

    /// Connects from one of the addresses of this machine.
    fn connect(&self, from: &str) -> TcpStream {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let from = SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0);
        rustix::net::bind(&socket, &from).unwrap();
        rustix::net::connect(&socket, &self.address()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }
}

/// Returns true if the client is served.
fn is_served(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 2];
    stream.write_all(b"x\n").is_ok() && stream.read_exact(&mut answer).is_ok()
}

fn rules_deny_addresses<C: Concurrency>(model: C) {
    let admission = Admission::new()
        .deny("127.0.0.2".parse().unwrap())
        .allow("127.0.0.0/8".parse().unwrap());
    let server = tcp(model, admission);
    assert!(is_served(&mut server.connect("127.0.0.1")));
    assert!(!is_served(&mut server.connect("127.0.0.2")));
    assert_eq!(server.rejection(), "127.0.0.2: denied by a rule");
    assert!(is_served(&mut server.connect("127.0.0.3")));
    let counters = server.running.handle.counters();
    assert_eq!((counters.accepted, counters.refused), (3, 1));

    // All addresses are denied now, and then all are allowed.
    let handle = &server.running.handle;
    handle.set_admission(Admission::new().deny("all".parse().unwrap()));
    assert!(!is_served(&mut server.connect("127.0.0.1")));
    handle.set_admission(Admission::new());
    assert!(is_served(&mut server.connect("127.0.0.2")));
}

fn address_has_a_maximum_of_connections<C: Concurrency>(model: C) {
    let server = tcp(model, Admission::new().max_per_peer(2));
    let mut active: Vec<_> = (0..2).map(|_| server.connect("127.0.0.1")).collect();
    assert!(active.iter_mut().all(is_served));
    assert!(!is_served(&mut server.connect("127.0.0.1")));
    assert_eq!(server.rejection(), "127.0.0.1: too many of this peer");
    assert!(
        is_served(&mut server.connect("127.0.0.2")),
        "another address is served"
    );
    drop(active.pop());
    common::eventually(TIMEOUT, "a free slot", || {
        is_served(&mut server.connect("127.0.0.1"))
    });
    // The limit is raised while serving.
    server
        .running
        .handle
        .set_admission(Admission::new().max_per_peer(4));
    let mut more: Vec<_> = (0..3).map(|_| server.connect("127.0.0.1")).collect();
    common::eventually(TIMEOUT, "three more", || {
        more.iter_mut().all(is_served) || {
            more = (0..3).map(|_| server.connect("127.0.0.1")).collect();
            false
        }
    });
}

fn new_limit_counts_existing_connections<C: Concurrency>(model: C) {
    let server = tcp(model, Admission::new());
    let mut active: Vec<_> = (0..2).map(|_| server.connect("127.0.0.1")).collect();
    assert!(active.iter_mut().all(is_served));
    let handle = &server.running.handle;
    handle.set_admission(Admission::new().max_per_peer(2));
    assert!(
        active.iter_mut().all(is_served),
        "existing connections stay"
    );
    assert!(!is_served(&mut server.connect("127.0.0.1")));
    assert_eq!(server.rejection(), "127.0.0.1: too many of this peer");
    active.pop();
    common::eventually(TIMEOUT, "a free slot", || {
        is_served(&mut server.connect("127.0.0.1"))
    });
}

fn rate_per_address_rejects_further_clients<C: Concurrency>(model: C) {
    // The rate is so low that no further connection is admitted during the test.
    let rate = Rate::per_second(1).burst(3);
    let server = tcp(model, Admission::new().rate_per_peer(rate));
    let started = Instant::now();
    let served = (0..6)
        .filter(|_| is_served(&mut server.connect("127.0.0.1")))
        .count();
    let regained = started.elapsed().as_secs();
    assert!(
        (3..=3 + usize::try_from(regained).unwrap() + 1).contains(&served),
        "{served}"
    );
    assert_eq!(server.rejection(), "127.0.0.1: too fast from this peer");
    assert!(is_served(&mut server.connect("127.0.0.2")));
}

fn total_rate_delays_clients<C: Concurrency>(model: C) {
    let server = tcp(model, Admission::new().rate(Rate::per_second(20).burst(2)));
    let started = Instant::now();
    let mut clients: Vec<_> = (0..12).map(|_| server.connect("127.0.0.1")).collect();
    for client in &mut clients {
        assert!(is_served(client));
        // Closed, so that a sequential server serves the next client.
        client.shutdown(std::net::Shutdown::Both).unwrap();
    }
    let took = started.elapsed();
    assert!(took > Duration::from_millis(480), "{took:?}");
    assert!(server.rejections.try_recv().is_err());
    // The rate is lifted while clients wait.
    let handle = &server.running.handle;
    handle.set_admission(Admission::new().rate(Rate::per_second(1).burst(1)));
    let mut waiting: Vec<_> = (0..20).map(|_| server.connect("127.0.0.1")).collect();
    handle.set_admission(Admission::new());
    let started = Instant::now();
    for client in &mut waiting {
        assert!(is_served(client));
        client.shutdown(std::net::Shutdown::Both).unwrap();
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

fn admission_applies_to_datagrams<C: Concurrency>(model: C) {
    let admission = Admission::new()
        .deny("127.0.0.2".parse().unwrap())
        .rate_per_peer(Rate::per_second(1).burst(2));
    let server = Server::<Udp, C>::builder()
        .concurrency(model)
        .admission(admission)
        .bind("127.0.0.1:0", echo_datagram())
        .unwrap();
    let running = Running::start(server);
    let Endpoint::Udp(address) = running.endpoint else {
        unreachable!("the transport is UDP");
    };
    let client = |from: &str| {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket
    };
    let (denied, fast, other) = (
        client("127.0.0.2"),
        client("127.0.0.1"),
        client("127.0.0.3"),
    );
    denied.send(b"no").unwrap();
    for _ in 0..5 {
        fast.send(b"yes").unwrap();
    }
    other.send(b"last").unwrap();
    assert_eq!(other.recv(&mut [0; 9]).unwrap(), 4);
    assert!((0..2).all(|_| fast.recv(&mut [0; 9]).is_ok()));
    common::eventually(TIMEOUT, "the rejections", || {
        running.handle.counters().refused >= 3
    });
    for client in [&denied, &fast] {
        client.set_nonblocking(true).unwrap();
    }
    assert!(denied.recv(&mut [0; 9]).is_err());
    assert!(fast.recv(&mut [0; 9]).is_err());
}

fn admission_does_not_apply_to_unix_peers<C: Concurrency>(model: C) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::<UnixStream, C>::builder()
        .concurrency(model)
        .admission(
            Admission::new()
                .deny("all".parse().unwrap())
                .max_per_peer(1),
        )
        .bind(dir.path().join("s"), echo())
        .unwrap();
    let running = Running::start(server);
    assert_eq!(running.client().ask("hello"), "hello");
}

common::under_each_model! {
    rules_deny_addresses
    address_has_a_maximum_of_connections
    new_limit_counts_existing_connections
    rate_per_address_rejects_further_clients
    total_rate_delays_clients
    admission_applies_to_datagrams
    admission_does_not_apply_to_unix_peers
}

/// A sequential server has one active request at a time, so that a limit per address has no effect.
mod sequential {
    use super::Sequential;

    #[test]
    fn rules_deny_addresses() {
        super::rules_deny_addresses(Sequential);
    }

    #[test]
    fn rate_per_address_rejects_further_clients() {
        super::rate_per_address_rejects_further_clients(Sequential);
    }

    #[test]
    fn total_rate_delays_clients() {
        super::total_rate_delays_clients(Sequential);
    }

    #[test]
    fn admission_applies_to_datagrams() {
        super::admission_applies_to_datagrams(Sequential);
    }
}
