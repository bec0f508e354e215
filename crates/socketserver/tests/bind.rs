//! Bind: rejected addresses, clean-up after errors, and reuse of addresses.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails or is skipped"
)]

mod common;

use std::fs::File;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::client::{Client, Endpoint};
use common::process::{block_process_starts, descriptors, in_own_process};
use common::running::{Running, echo, echo_datagram};
use common::{TIMEOUT, eventually};
use socketserver::{
    BindError, Connection, DualStack, TcpServer, ThreadingTcpServer, Timeouts, UdpServer,
    UnixDatagramServer, UnixStreamServer, handler_fn,
};

#[test]
fn thousand_failing_binds_leave_no_descriptor() {
    in_own_process("thousand_failing_binds_leave_no_descriptor", || {
        let dir = tempfile::tempdir().unwrap();
        let live = UnixStreamServer::bind(dir.path().join("live"), echo()).unwrap();
        let taken = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
        let taken_udp = UdpServer::bind("127.0.0.1:0", echo_datagram()).unwrap();
        let file = dir.path().join("file");
        File::create(&file).unwrap();
        let inet = |server: &socketserver::Address| server.as_inet().unwrap();
        let (taken_at, taken_udp_at) = (inet(taken.local_addr()), inet(taken_udp.local_addr()));
        let live_at = live.local_addr().as_path().unwrap();

        let before = descriptors(std::process::id());
        for _ in 0..1000 {
            let error = TcpServer::bind(taken_at, echo()).unwrap_err();
            assert!(matches!(error, BindError::AddressInUse { .. }), "{error}");
            let error = UdpServer::bind(taken_udp_at, echo_datagram()).unwrap_err();
            assert!(matches!(error, BindError::AddressInUse { .. }), "{error}");
            let missing = dir.path().join("missing/socket");
            let error = UnixStreamServer::bind(missing, echo()).unwrap_err();
            assert!(
                matches!(error, BindError::NoSuchDirectory { .. }),
                "{error}"
            );
            let error = UnixStreamServer::bind(&file, echo()).unwrap_err();
            assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
            let error = UnixStreamServer::bind(live_at, echo()).unwrap_err();
            assert!(matches!(error, BindError::AddressInUse { .. }), "{error}");
            // Of another type than the bound socket, which is in use nevertheless.
            let error = UnixDatagramServer::bind(live_at, echo_datagram()).unwrap_err();
            assert!(matches!(error, BindError::AddressInUse { .. }), "{error}");
            let error =
                TcpServer::builder().bind_all(["127.0.0.1:0".parse().unwrap(), taken_at], echo());
            assert!(
                matches!(error, Err(BindError::AddressInUse { .. })),
                "{error:?}"
            );
        }
        assert_eq!(descriptors(std::process::id()), before);
        assert!(file.is_file() && live_at.exists());
    });
}

#[test]
fn bind_error_names_the_address_and_the_remedy() {
    let taken = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let address = taken.local_addr().to_string();
    let error = TcpServer::bind(&*address, echo()).unwrap_err().to_string();
    assert!(
        error.contains(&address) && error.contains("port 0"),
        "{error}"
    );

    // A network for documentation, which no machine has: RFC 5737.
    let error = TcpServer::bind("192.0.2.1:0", echo()).unwrap_err();
    assert!(
        matches!(error, BindError::AddressNotAvailable { .. }),
        "{error}"
    );
    for invalid in ["", "127.0.0.1", "127.0.0.1:99999", ":", "[::1"] {
        let error = TcpServer::bind(invalid, echo()).unwrap_err();
        assert!(
            matches!(error, BindError::BadAddress { .. }),
            "{invalid}: {error}"
        );
    }
    let none: [&str; 0] = [];
    let error = TcpServer::builder().bind_all(none, echo()).unwrap_err();
    assert!(matches!(error, BindError::BadAddress { .. }), "{error}");
}

#[test]
fn zero_timeout_is_rejected() {
    let zero = Timeouts::default().request(Some(Duration::ZERO));
    let error = TcpServer::builder()
        .timeouts(zero)
        .bind("127.0.0.1:0", echo())
        .unwrap_err();
    assert!(matches!(error, BindError::BadOption { .. }), "{error}");
    assert!(error.to_string().contains("request"), "{error}");
}

/// The side that closes first keeps the address for a minute, in the state TIME_WAIT.
#[test]
fn port_can_be_bound_again_at_once() {
    let _no_starts = block_process_starts();
    let close_at_once = || handler_fn(|_: &mut Connection| Ok(()));
    let mut server = TcpServer::bind("127.0.0.1:0", close_at_once()).unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let client = Client::connect(&Endpoint::Tcp(address)).unwrap();
    server.handle_request(Some(TIMEOUT)).unwrap();
    assert!(client.read_rest().unwrap().is_empty());
    drop(server);

    let without = || {
        TcpServer::builder()
            .without_reuse_address()
            .bind(address, close_at_once())
    };
    assert!(
        matches!(without(), Err(BindError::AddressInUse { .. })),
        "there is no connection in TIME_WAIT"
    );
    let again = TcpServer::bind(address, close_at_once()).unwrap();
    assert_eq!(*again.local_addr(), address);
}

#[test]
fn port_is_shared_only_if_all_servers_set_reuse_port() {
    let tcp = || TcpServer::builder().reuse_port();
    let first = tcp().bind("127.0.0.1:0", echo()).unwrap();
    let address = first.local_addr().as_inet().unwrap();
    let second = tcp().bind(address, echo()).unwrap();
    assert_eq!(first.local_addr(), second.local_addr());
    assert!(matches!(
        TcpServer::bind(address, echo()),
        Err(BindError::AddressInUse { .. })
    ));

    let udp = || UdpServer::builder().reuse_port();
    let first = udp().bind("127.0.0.1:0", echo_datagram()).unwrap();
    let address = first.local_addr().as_inet().unwrap();
    udp().bind(address, echo_datagram()).unwrap();
    let error = UdpServer::bind(address, echo_datagram());
    assert!(matches!(error, Err(BindError::AddressInUse { .. })));
}

fn has_ipv6(test: &str) -> bool {
    let has = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !has {
        println!("SKIPPED {test}: this machine has no IPv6");
    }
    has
}

#[test]
fn ipv6_literal_is_served() {
    if !has_ipv6("ipv6_literal_is_served") {
        return;
    }
    let tcp = Running::start(ThreadingTcpServer::bind("[::1]:0", echo()).unwrap());
    assert_eq!(tcp.client().ask("over six"), "over six");
    let udp = Running::start(UdpServer::bind("[::1]:0", echo_datagram()).unwrap());
    assert_eq!(udp.client().ask("over six"), "over six");
}

#[test]
fn one_socket_serves_both_families_by_default() {
    if !has_ipv6("one_socket_serves_both_families_by_default") {
        return;
    }
    let whoami = handler_fn(|conn: &mut Connection| {
        use std::io::Write;
        let peer = conn.peer_addr().to_string();
        Ok(writeln!(conn, "{peer}")?)
    });
    let both = Running::start(ThreadingTcpServer::bind("[::]:0", whoami.clone()).unwrap());
    let Endpoint::Tcp(address) = both.endpoint else {
        panic!("no TCP")
    };
    let four = Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], address.port())));
    let peer = Client::connect(&four)
        .unwrap()
        .receive_line()
        .unwrap()
        .unwrap();
    assert!(peer.starts_with("[::ffff:127.0.0.1]:"), "{peer}");
    let six = Endpoint::Tcp(SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())));
    let peer = Client::connect(&six)
        .unwrap()
        .receive_line()
        .unwrap()
        .unwrap();
    assert!(peer.starts_with("[::1]:"), "{peer}");

    // Another process may have the port of the other family: then a further one is tried.
    let both = (0..20).find_map(|_| {
        let only_six = ThreadingTcpServer::builder().dual_stack(DualStack::Disabled);
        let only_six = only_six.bind("[::]:0", echo()).unwrap();
        let port = only_six.local_addr().as_inet().unwrap().port();
        match TcpServer::bind(("127.0.0.1", port), echo()) {
            Err(BindError::AddressInUse { .. }) => None,
            bound => Some((bound.unwrap(), port, only_six)),
        }
    });
    let (four, port, _only_six) = both.expect("a port that is free for both families");
    assert_eq!(four.local_addr().as_inet().unwrap().port(), port);
}

#[test]
fn one_server_serves_several_addresses() {
    let _no_starts = block_process_starts();
    let server = ThreadingTcpServer::builder()
        .bind_all(["127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0"], echo())
        .unwrap();
    let all: Vec<_> = server.local_addrs().map(|a| a.as_inet().unwrap()).collect();
    assert_eq!(all.len(), 3);
    let running = Running::start(server);
    for address in &all {
        assert_eq!(
            Client::connect(&Endpoint::Tcp(*address))
                .unwrap()
                .ask("hello"),
            "hello"
        );
    }
    running.handle.drain(TIMEOUT);
    let handle = running.handle.clone();
    running.wait_until_stopped().unwrap();
    assert_eq!(handle.counters().accepted, 3);
    for address in all {
        assert!(TcpStream::connect(address).is_err());
    }
}

#[test]
fn failed_bind_releases_earlier_addresses() {
    let _no_starts = block_process_starts();
    let taken = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let free = TcpListener::bind("127.0.0.3:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let both = [free, taken.local_addr().as_inet().unwrap()];
    let error = TcpServer::builder().bind_all(both, echo());
    assert!(matches!(error, Err(BindError::AddressInUse { .. })));
    assert!(TcpStream::connect(free).is_err());

    let dir = tempfile::tempdir().unwrap();
    let both = [dir.path().join("a"), dir.path().join("missing/b")];
    assert!(UnixStreamServer::builder().bind_all(both, echo()).is_err());
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}

/// With the traditional backlog of five, most of these connects would wait for a second or more.
#[test]
fn default_backlog_holds_two_hundred_clients() {
    const EACH: usize = 50;
    let attempt = || {
        let server = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
        let address = server.local_addr().as_inet().unwrap();
        let burst = move || {
            let connect = |_| {
                let start = Instant::now();
                let client = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
                (start.elapsed(), client)
            };
            (0..EACH).map(connect).collect::<Vec<_>>()
        };
        let bursts: Vec<_> = (0..4).map(|_| thread::spawn(burst)).collect();
        let all: Vec<_> = bursts
            .into_iter()
            .flat_map(|burst| burst.join().unwrap())
            .collect();
        let mut times: Vec<_> = all.iter().map(|(time, _)| *time).collect();
        times.sort();
        (times[times.len() * 99 / 100 - 1], times[times.len() - 1])
    };
    // No connection is accepted: all two hundred wait at the same time. Three attempts, because the
    // machine may be busy.
    let mut seen = Vec::new();
    let passed = (0..3).any(|_| {
        seen.push(attempt());
        seen.last()
            .is_some_and(|(p99, _)| *p99 < Duration::from_millis(50))
    });
    assert!(passed, "p99 and longest: {seen:?}");
    assert!(
        seen.iter()
            .all(|(_, longest)| *longest < Duration::from_secs(1)),
        "{seen:?}"
    );
}

#[test]
fn backlog_can_be_limited() {
    let server = TcpServer::builder()
        .backlog(1)
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let brief = Duration::from_millis(100);
    let mut waiting = Vec::new();
    eventually(TIMEOUT, "the backlog to be full", || {
        match TcpStream::connect_timeout(&address, brief) {
            Ok(client) => waiting.push(client),
            Err(_) => return true,
        }
        assert!(waiting.len() < 10, "a backlog of 1 holds ten connections");
        false
    });
}
