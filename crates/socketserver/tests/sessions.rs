//! What a server remembers of its peers: for each its own, for as long as it is heard, and no more
//! than there is room for.

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
use common::{PATIENCE, eventually};
use socketserver::transport::{Udp, UnixDatagram as Unixgram};
use socketserver::{
    Address, Concurrency, Datagram, Sequential, Server, SessionError, SessionLimits, Sessions,
    handler_fn,
};

/// A state that tells when it is gone.
struct State {
    seen: AtomicU32,
    gone: Arc<AtomicU32>,
}

impl Drop for State {
    fn drop(&mut self) {
        self.gone.fetch_add(1, Ordering::SeqCst);
    }
}

/// A server that answers with the number of a peer's datagram, or with why it has none.
fn counting<C: Concurrency>(
    model: C,
    limits: SessionLimits,
) -> (Running, Sessions<State>, Arc<AtomicU32>) {
    let sessions = Sessions::with_limits(limits);
    let gone = Arc::new(AtomicU32::new(0));
    let (table, graveyard) = (sessions.clone(), gone.clone());
    let count = handler_fn(move |packet: &mut Datagram| {
        let make = || State {
            seen: AtomicU32::new(0),
            gone: graveyard.clone(),
        };
        let answer = match table.get_or_insert_with(packet.peer_addr(), make) {
            Ok(state) => (state.seen.fetch_add(1, Ordering::Relaxed) + 1).to_string(),
            Err(refused) => format!("{refused:?}"),
        };
        Ok(packet.reply(answer.as_bytes())?)
    });
    let server = Server::<Udp, C>::builder().concurrency(model);
    let running = Running::start(server.bind("127.0.0.1:0", count).unwrap());
    (running, sessions, gone)
}

fn each_peer_has_its_own<C: Concurrency>(model: C) {
    let (running, sessions, _) = counting(model, SessionLimits::default());
    let mut clients: Vec<_> = (0..8).map(|_| running.client()).collect();
    for _ in 0..20 {
        for client in &mut clients {
            client.say("count me").unwrap();
        }
    }
    for client in &mut clients {
        let mut numbers: Vec<u32> = (0..20)
            .map(|_| client.hear().unwrap().unwrap().parse().unwrap())
            .collect();
        // Those that are handled at the same time may overtake each other.
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(1..=20));
    }
    assert_eq!(sessions.len(), 8);
}

fn who_is_silent_is_forgotten<C: Concurrency>(model: C) {
    let idle = Duration::from_millis(200);
    let (running, sessions, gone) = counting(model, SessionLimits::default().idle(idle));
    let mut client = running.client();
    assert_eq!(client.ask("one"), "1");
    eventually(PATIENCE, "the state to be dropped", || {
        sessions.expire();
        gone.load(Ordering::SeqCst) == 1
    });
    assert!(sessions.is_empty());
    assert_eq!(client.ask("one again"), "1");
    // By the next one who comes, without anybody's looking after it.
    eventually(PATIENCE, "the next to be dropped", || {
        running.client().ask("somebody else");
        gone.load(Ordering::SeqCst) >= 2
    });
}

fn a_full_table_keeps_who_is_there<C: Concurrency>(model: C) {
    let (running, sessions, gone) = counting(model, SessionLimits::default().sessions(2));
    let (mut one, mut two, mut three) = (running.client(), running.client(), running.client());
    assert_eq!((one.ask("?"), two.ask("?")), ("1".into(), "1".into()));
    assert_eq!(three.ask("?"), "Full");
    assert_eq!((one.ask("?"), two.ask("?")), ("2".into(), "2".into()));
    assert_eq!(sessions.len(), 2);
    assert_eq!(gone.load(Ordering::SeqCst), 0);
}

fn an_address_has_so_many<C: Concurrency>(model: C) {
    let limits = SessionLimits::default().per_address(2);
    let (running, sessions, _) = counting(model, limits);
    let Endpoint::Udp(server) = running.endpoint else {
        unreachable!("it is UDP");
    };
    let client = |from: &str| {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let ask = |client: &UdpSocket| {
        let mut answer = [0; 99];
        client.send(b"?").unwrap();
        let n = client.recv(&mut answer).unwrap();
        String::from_utf8(answer[..n].to_vec()).unwrap()
    };
    let greedy: Vec<_> = (0..3).map(|_| client("127.0.0.1")).collect();
    let answers: Vec<_> = greedy.iter().map(ask).collect();
    assert_eq!(answers, ["1", "1", "AddressFull"]);
    assert_eq!(ask(&client("127.0.0.2")), "1");
    assert!(sessions.remove(&address(&greedy[0])).is_some());
    assert!(sessions.get(&address(&greedy[0])).is_none());
    assert_eq!(ask(&greedy[2]), "1");
}

fn address(socket: &UdpSocket) -> Address {
    Address::Inet(socket.local_addr().unwrap())
}

fn a_peer_without_a_name_has_none<C: Concurrency>(model: C) {
    let sessions = Sessions::<()>::new();
    let (tell, told) = channel();
    let handler = handler_fn(move |packet: &mut Datagram| {
        let refused = sessions.get_or_insert_with(packet.peer_addr(), || ());
        Ok(tell.send(refused.map(drop))?)
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let server = Server::<Unixgram, C>::builder().concurrency(model);
    let running = Running::start(server.bind(&path, handler).unwrap());
    let nobody = UnixDatagram::unbound().unwrap();
    nobody.send_to(b"?", path).unwrap();
    let refused = told.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(refused, SessionError::Unnamed);
    running.client().say("?").unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(()));
}

common::under_each_model! {
    each_peer_has_its_own
    who_is_silent_is_forgotten
    a_full_table_keeps_who_is_there
    an_address_has_so_many
    a_peer_without_a_name_has_none
}

mod sequential {
    use super::Sequential;

    #[test]
    fn each_peer_has_its_own() {
        super::each_peer_has_its_own(Sequential);
    }

    #[test]
    fn who_is_silent_is_forgotten() {
        super::who_is_silent_is_forgotten(Sequential);
    }

    #[test]
    fn a_full_table_keeps_who_is_there() {
        super::a_full_table_keeps_who_is_there(Sequential);
    }
}

/// On one thread: a lock that is held while a state is made would keep everybody from being served.
#[cfg(feature = "green")]
#[test]
fn making_a_state_keeps_nobody_waiting() {
    let sessions = Sessions::<()>::new();
    let (release, gate) = channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let handler = handler_fn(move |packet: &mut Datagram| {
        let is_slow = packet.bytes() == b"slow";
        let gate = gate.clone();
        sessions.get_or_insert_with(packet.peer_addr(), || {
            if is_slow {
                let wait = move || gate.lock().unwrap().recv_timeout(PATIENCE);
                greenroom::unblock(wait).unwrap();
            }
        })?;
        Ok(packet.reply(packet.bytes())?)
    });
    let model = socketserver::Green::new().workers(1);
    let server = Server::<Udp, _>::builder().concurrency(model);
    let running = Running::start(server.bind("127.0.0.1:0", handler).unwrap());
    let mut slow = running.client();
    slow.say("slow").unwrap();
    eventually(PATIENCE, "it to be under way", || {
        running.handle.active_count() == 1
    });
    for _ in 0..10 {
        assert_eq!(running.client().ask("quick"), "quick");
    }
    release.send(()).unwrap();
    assert_eq!(slow.hear().unwrap().as_deref(), Some("slow"));
}

#[test]
fn two_that_come_at_once_share_one_state() {
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

/// Many threads on a table that is too small, whose sessions do not last: at no time there are more
/// than it holds.
#[test]
fn the_limits_hold_under_load() {
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
                        Err(refused) => assert_ne!(refused, SessionError::Unnamed),
                    }
                    if n % 16 == 0 {
                        sessions.remove(&peer);
                    }
                    assert!(sessions.len() <= 50);
                }
            });
        }
    });
    eventually(PATIENCE, "all to be forgotten", || sessions.is_empty());
}

/// A state's destructor is the application's, and may use the table itself.
#[test]
fn a_state_may_use_the_table_when_it_goes() {
    struct Curious(Sessions<Self>);
    impl Drop for Curious {
        fn drop(&mut self) {
            let _ = self.0.len();
        }
    }
    let limits = SessionLimits::default().idle(Duration::from_millis(1));
    let sessions = Sessions::with_limits(limits);
    let peer = Address::Inet(SocketAddr::from(([10, 0, 0, 1], 5)));
    let (done, finished) = channel();
    thread::spawn(move || {
        let make = || Curious(sessions.clone());
        let _ = sessions.get_or_insert_with(&peer, make).unwrap();
        drop(sessions.remove(&peer));
        let _ = sessions.get_or_insert_with(&peer, make).unwrap();
        eventually(PATIENCE, "its end", || sessions.is_empty());
        done.send(()).unwrap();
    });
    finished.recv_timeout(2 * PATIENCE).unwrap();
}
