//! Session state per peer: separate for each peer, kept while the peer is active, and limited in
//! number.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use common::client::Endpoint;
use common::running::Running;
use common::{TIMEOUT, eventually};
use socketserver::transport::{Udp, UnixDatagram as Unixgram};
use socketserver::{
    Address, Concurrency, Datagram, Sequential, Server, SessionError, SessionLimits, Sessions,
    handler_fn,
};

/// A state that counts its drops.
struct State {
    seen: AtomicU32,
    dropped: Arc<AtomicU32>,
}

impl Drop for State {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

/// Starts a server that replies with the number of the peer's datagram, or with the reason why the
/// peer has no session.
fn serve_counts<C: Concurrency>(
    model: C,
    limits: SessionLimits,
) -> (Running, Sessions<State>, Arc<AtomicU32>) {
    let sessions = Sessions::with_limits(limits);
    let dropped = Arc::new(AtomicU32::new(0));
    let (table, drop_count) = (sessions.clone(), dropped.clone());
    let count = handler_fn(move |packet: &mut Datagram| {
        let make = || State {
            seen: AtomicU32::new(0),
            dropped: drop_count.clone(),
        };
        let answer = match table.get_or_insert_with(packet.peer_addr(), make) {
            Ok(state) => (state.seen.fetch_add(1, Ordering::Relaxed) + 1).to_string(),
            Err(error) => format!("{error:?}"),
        };
        Ok(packet.reply(answer.as_bytes())?)
    });
    let server = Server::<Udp, C>::builder().concurrency(model);
    let running = Running::start(server.bind("127.0.0.1:0", count).unwrap());
    (running, sessions, dropped)
}

fn each_peer_has_its_own_session<C: Concurrency>(model: C) {
    let (running, sessions, _) = serve_counts(model, SessionLimits::default());
    let mut clients: Vec<_> = (0..8).map(|_| running.client()).collect();
    for _ in 0..20 {
        for client in &mut clients {
            client.send_line("count").unwrap();
        }
    }
    for client in &mut clients {
        let mut numbers: Vec<u32> = (0..20)
            .map(|_| client.receive_line().unwrap().unwrap().parse().unwrap())
            .collect();
        // Replies that are handled at the same time may overtake each other.
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(1..=20));
    }
    assert_eq!(sessions.len(), 8);
}

fn idle_session_expires<C: Concurrency>(model: C) {
    let idle = Duration::from_millis(200);
    let (running, sessions, dropped) = serve_counts(model, SessionLimits::default().idle(idle));
    let mut client = running.client();
    assert_eq!(client.ask("one"), "1");
    eventually(TIMEOUT, "the state to be dropped", || {
        sessions.expire();
        dropped.load(Ordering::SeqCst) == 1
    });
    assert!(sessions.is_empty());
    assert_eq!(client.ask("one again"), "1");
    // Expired by the request of another peer, without a call of `expire`.
    eventually(TIMEOUT, "the next state to be dropped", || {
        running.client().ask("another peer");
        dropped.load(Ordering::SeqCst) >= 2
    });
}

fn full_table_keeps_existing_sessions<C: Concurrency>(model: C) {
    let (running, sessions, dropped) = serve_counts(model, SessionLimits::default().sessions(2));
    let (mut one, mut two, mut three) = (running.client(), running.client(), running.client());
    assert_eq!((one.ask("?"), two.ask("?")), ("1".into(), "1".into()));
    assert_eq!(three.ask("?"), "Full");
    assert_eq!((one.ask("?"), two.ask("?")), ("2".into(), "2".into()));
    assert_eq!(sessions.len(), 2);
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
}

fn address_has_a_maximum_of_sessions<C: Concurrency>(model: C) {
    let limits = SessionLimits::default().per_address(2);
    let (running, sessions, _) = serve_counts(model, limits);
    let Endpoint::Udp(server) = running.endpoint else {
        unreachable!("the transport is UDP");
    };
    let client = |from: &str| {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket
    };
    let ask = |client: &UdpSocket| {
        let mut answer = [0; 99];
        client.send(b"?").unwrap();
        let n = client.recv(&mut answer).unwrap();
        String::from_utf8(answer[..n].to_vec()).unwrap()
    };
    let same_address: Vec<_> = (0..3).map(|_| client("127.0.0.1")).collect();
    let answers: Vec<_> = same_address.iter().map(ask).collect();
    assert_eq!(answers, ["1", "1", "AddressFull"]);
    assert_eq!(ask(&client("127.0.0.2")), "1");
    assert!(sessions.remove(&address(&same_address[0])).is_some());
    assert!(sessions.get(&address(&same_address[0])).is_none());
    assert_eq!(ask(&same_address[2]), "1");
}

fn address(socket: &UdpSocket) -> Address {
    Address::Inet(socket.local_addr().unwrap())
}

fn unnamed_peer_has_no_session<C: Concurrency>(model: C) {
    let sessions = Sessions::<()>::new();
    let (tx, rx) = channel();
    let handler = handler_fn(move |packet: &mut Datagram| {
        let error = sessions.get_or_insert_with(packet.peer_addr(), || ());
        Ok(tx.send(error.map(drop))?)
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let server = Server::<Unixgram, C>::builder().concurrency(model);
    let running = Running::start(server.bind(&path, handler).unwrap());
    let unnamed = UnixDatagram::unbound().unwrap();
    unnamed.send_to(b"?", path).unwrap();
    let error = rx.recv_timeout(TIMEOUT).unwrap().unwrap_err();
    assert_eq!(error, SessionError::Unnamed);
    running.client().send_line("?").unwrap();
    assert_eq!(rx.recv_timeout(TIMEOUT).unwrap(), Ok(()));
}

common::under_each_model! {
    each_peer_has_its_own_session
    idle_session_expires
    full_table_keeps_existing_sessions
    address_has_a_maximum_of_sessions
    unnamed_peer_has_no_session
}

mod sequential {
    use super::Sequential;

    #[test]
    fn each_peer_has_its_own_session() {
        super::each_peer_has_its_own_session(Sequential);
    }

    #[test]
    fn idle_session_expires() {
        super::idle_session_expires(Sequential);
    }

    #[test]
    fn full_table_keeps_existing_sessions() {
        super::full_table_keeps_existing_sessions(Sequential);
    }
}

/// On one thread: a lock held while a state is created would block the other peers.
#[cfg(feature = "green")]
#[test]
fn creating_a_state_does_not_block_other_peers() {
    let sessions = Sessions::<()>::new();
    let (release, wait_rx) = channel::<()>();
    let wait_rx = Arc::new(Mutex::new(wait_rx));
    let handler = handler_fn(move |packet: &mut Datagram| {
        let is_slow = packet.bytes() == b"slow";
        let wait_rx = wait_rx.clone();
        sessions.get_or_insert_with(packet.peer_addr(), || {
            if is_slow {
                let wait = move || wait_rx.lock().unwrap().recv_timeout(TIMEOUT);
                greenroom::unblock(wait).unwrap();
            }
        })?;
        Ok(packet.reply(packet.bytes())?)
    });
    let model = socketserver::Green::new().workers(1);
    let server = Server::<Udp, _>::builder().concurrency(model);
    let running = Running::start(server.bind("127.0.0.1:0", handler).unwrap());
    let mut slow = running.client();
    slow.send_line("slow").unwrap();
    eventually(TIMEOUT, "the slow request to begin", || {
        running.handle.active_count() == 1
    });
    for _ in 0..10 {
        assert_eq!(running.client().ask("quick"), "quick");
    }
    release.send(()).unwrap();
    assert_eq!(slow.receive_line().unwrap().as_deref(), Some("slow"));
}

#[test]
fn concurrent_creations_share_one_state() {
    let sessions = Sessions::<u32>::new();
    let peer = Address::Inet(SocketAddr::from(([10, 0, 0, 1], 5)));
    let both = Barrier::new(2);
    let states: Vec<_> = thread::scope(|scope| {
        let begin = |number| {
            let (sessions, peer, both) = (sessions.clone(), &peer, &both);
            scope.spawn(move || {
                let make = || {
                    both.wait();
                    number
                };
                sessions.get_or_insert_with(peer, make).unwrap()
            })
        };
        let started: Vec<_> = [1, 2].map(begin).into_iter().collect();
        started.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert!(Arc::ptr_eq(&states[0], &states[1]));
    assert!(Arc::ptr_eq(&states[0], &sessions.get(&peer).unwrap()));
    assert_eq!(sessions.len(), 1);
}

/// Many threads use a table that is too small, with short sessions. The table never exceeds its
/// limit.
#[test]
fn limits_hold_under_load() {
    let limits = SessionLimits::default()
        .sessions(50)
        .per_address(10)
        .idle(Duration::from_millis(1));
    let sessions = Sessions::<u16>::with_limits(limits);
    thread::scope(|scope| {
        for thread in 0..4_u16 {
            let sessions = &sessions;
            scope.spawn(move || {
                for n in 0..20_000_u16 {
                    let [host, port] = n.wrapping_mul(40_503).wrapping_add(thread).to_be_bytes();
                    let address =
                        SocketAddr::from(([10, 0, 0, host % 8], u16::from(port % 32) + 1));
                    let peer = Address::Inet(address);
                    match sessions.get_or_insert_with(&peer, || address.port()) {
                        Ok(state) => assert_eq!(*state, address.port()),
                        Err(error) => assert_ne!(error, SessionError::Unnamed),
                    }
                    if n % 16 == 0 {
                        sessions.remove(&peer);
                    }
                    assert!(sessions.len() <= 50);
                }
            });
        }
    });
    eventually(TIMEOUT, "all sessions to expire", || sessions.is_empty());
}

/// The destructor of a state is user code, and may use the table.
#[test]
fn state_may_use_the_table_in_its_destructor() {
    struct UsesTable(Sessions<Self>);
    impl Drop for UsesTable {
        fn drop(&mut self) {
            let _ = self.0.len();
        }
    }
    let limits = SessionLimits::default().idle(Duration::from_millis(1));
    let sessions = Sessions::with_limits(limits);
    let peer = Address::Inet(SocketAddr::from(([10, 0, 0, 1], 5)));
    let (done, finished) = channel();
    thread::spawn(move || {
        let make = || UsesTable(sessions.clone());
        let _ = sessions.get_or_insert_with(&peer, make).unwrap();
        drop(sessions.remove(&peer));
        let _ = sessions.get_or_insert_with(&peer, make).unwrap();
        eventually(TIMEOUT, "the session to expire", || sessions.is_empty());
        done.send(()).unwrap();
    });
    finished.recv_timeout(2 * TIMEOUT).unwrap();
}
