//! Who may come in, how many from one address, and how fast; changed while serving.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::PATIENCE;
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
    let (told, rejections) = mpsc::channel();
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .admission(admission)
        .on_event(move |event| {
            if let Event::Rejected(info, reason) = event {
                let ip = info.peer().as_inet().unwrap().ip();
                let _ = told.send(format!("{ip}: {reason}"));
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
            _ => unreachable!("it has an IP address"),
        }
    }

    fn rejection(&self) -> String {
        self.rejections.recv_timeout(PATIENCE).unwrap()
    }

    /// A connection from one of the addresses of this machine.
    fn connect(&self, from: &str) -> TcpStream {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let from = SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0);
        rustix::net::bind(&socket, &from).unwrap();
        rustix::net::connect(&socket, &self.address()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// Whether it is served.
fn answers(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 2];
    stream.write_all(b"x\n").is_ok() && stream.read_exact(&mut answer).is_ok()
}

fn rules_turn_addresses_away<C: Concurrency>(model: C) {
    let admission = Admission::new()
        .deny("127.0.0.2".parse().unwrap())
        .allow("127.0.0.0/8".parse().unwrap());
    let server = tcp(model, admission);
    assert!(answers(&mut server.connect("127.0.0.1")));
    assert!(!answers(&mut server.connect("127.0.0.2")));
    assert_eq!(server.rejection(), "127.0.0.2: denied by a rule");
    assert!(answers(&mut server.connect("127.0.0.3")));
    let counters = server.running.handle.counters();
    assert_eq!((counters.accepted, counters.refused), (3, 1));

    // From now on nobody, and then everybody.
    let handle = &server.running.handle;
    handle.set_admission(Admission::new().deny("all".parse().unwrap()));
    assert!(!answers(&mut server.connect("127.0.0.1")));
    handle.set_admission(Admission::new());
    assert!(answers(&mut server.connect("127.0.0.2")));
}

fn each_peer_has_so_many<C: Concurrency>(model: C) {
    let server = tcp(model, Admission::new().max_per_peer(2));
    let mut live: Vec<_> = (0..2).map(|_| server.connect("127.0.0.1")).collect();
    assert!(live.iter_mut().all(answers));
    assert!(!answers(&mut server.connect("127.0.0.1")));
    assert_eq!(server.rejection(), "127.0.0.1: too many of this peer");
    assert!(answers(&mut server.connect("127.0.0.2")), "another one");
    drop(live.pop());
    common::eventually(PATIENCE, "a place", || {
        answers(&mut server.connect("127.0.0.1"))
    });
    // Raised while serving.
    server
        .running
        .handle
        .set_admission(Admission::new().max_per_peer(4));
    let mut more: Vec<_> = (0..3).map(|_| server.connect("127.0.0.1")).collect();
    common::eventually(PATIENCE, "three more", || {
        more.iter_mut().all(answers) || {
            more = (0..3).map(|_| server.connect("127.0.0.1")).collect();
            false
        }
    });
}

fn a_limit_that_is_new_counts_those_who_are_there<C: Concurrency>(model: C) {
    let server = tcp(model, Admission::new());
    let mut live: Vec<_> = (0..2).map(|_| server.connect("127.0.0.1")).collect();
    assert!(live.iter_mut().all(answers));
    let handle = &server.running.handle;
    handle.set_admission(Admission::new().max_per_peer(2));
    assert!(live.iter_mut().all(answers), "they stay");
    assert!(!answers(&mut server.connect("127.0.0.1")));
    assert_eq!(server.rejection(), "127.0.0.1: too many of this peer");
    live.pop();
    common::eventually(PATIENCE, "a place", || {
        answers(&mut server.connect("127.0.0.1"))
    });
}

fn who_comes_too_fast_is_refused<C: Concurrency>(model: C) {
    // Slow enough that none comes back during the test.
    let rate = Rate::per_second(1).burst(3);
    let server = tcp(model, Admission::new().rate_per_peer(rate));
    let started = Instant::now();
    let served = (0..6)
        .filter(|_| answers(&mut server.connect("127.0.0.1")))
        .count();
    let regained = started.elapsed().as_secs();
    assert!(
        (3..=3 + usize::try_from(regained).unwrap() + 1).contains(&served),
        "{served}"
    );
    assert_eq!(server.rejection(), "127.0.0.1: too fast from this peer");
    assert!(answers(&mut server.connect("127.0.0.2")));
}

fn all_together_wait_for_their_turn<C: Concurrency>(model: C) {
    let server = tcp(model, Admission::new().rate(Rate::per_second(20).burst(2)));
    let started = Instant::now();
    let mut clients: Vec<_> = (0..12).map(|_| server.connect("127.0.0.1")).collect();
    for client in &mut clients {
        assert!(answers(client));
        // So that a sequential server gets to the next one.
        client.shutdown(std::net::Shutdown::Both).unwrap();
    }
    let took = started.elapsed();
    assert!(took > Duration::from_millis(480), "{took:?}");
    assert!(server.rejections.try_recv().is_err());
    // Lifted while clients wait.
    let handle = &server.running.handle;
    handle.set_admission(Admission::new().rate(Rate::per_second(1).burst(1)));
    let mut waiting: Vec<_> = (0..20).map(|_| server.connect("127.0.0.1")).collect();
    handle.set_admission(Admission::new());
    let started = Instant::now();
    for client in &mut waiting {
        assert!(answers(client));
        client.shutdown(std::net::Shutdown::Both).unwrap();
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

fn datagrams_are_subject_to_it<C: Concurrency>(model: C) {
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
        unreachable!("it is UDP");
    };
    let client = |from: &str| {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
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
    common::eventually(PATIENCE, "refusals", || {
        running.handle.counters().refused >= 3
    });
    for refused in [&denied, &fast] {
        refused.set_nonblocking(true).unwrap();
    }
    assert!(denied.recv(&mut [0; 9]).is_err());
    assert!(fast.recv(&mut [0; 9]).is_err());
}

fn unix_peers_have_no_address<C: Concurrency>(model: C) {
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
    rules_turn_addresses_away
    each_peer_has_so_many
    a_limit_that_is_new_counts_those_who_are_there
    who_comes_too_fast_is_refused
    all_together_wait_for_their_turn
    datagrams_are_subject_to_it
    unix_peers_have_no_address
}

/// It has one live request at a time, so the number of one peer is no limit.
mod sequential {
    use super::Sequential;

    #[test]
    fn rules_turn_addresses_away() {
        super::rules_turn_addresses_away(Sequential);
    }

    #[test]
    fn who_comes_too_fast_is_refused() {
        super::who_comes_too_fast_is_refused(Sequential);
    }

    #[test]
    fn all_together_wait_for_their_turn() {
        super::all_together_wait_for_their_turn(Sequential);
    }

    #[test]
    fn datagrams_are_subject_to_it() {
        super::datagrams_are_subject_to_it(Sequential);
    }
}
