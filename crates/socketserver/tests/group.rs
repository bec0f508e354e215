//! Several servers, of different kinds, in one loop.

#![allow(clippy::unwrap_used, reason = "a test says why it fails")]

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use common::client::{Client, Endpoint};
use common::process::{alone, open_files};
use common::running::{echo, echo_datagram, endpoint_of};
use common::{PATIENCE, eventually};
use socketserver::{
    Pooled, PooledTcpServer, PooledUnixStreamServer, ServeError, ServerGroup, ServerState,
    ThreadingTcpServer, ThreadingUnixStreamServer, UdpServer, UnixDatagramServer,
};

/// A thread per connection, the serving thread itself, a pool of one: and where they are.
fn group(dir: &std::path::Path) -> (ServerGroup, Vec<Endpoint>) {
    let tcp = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let udp = UdpServer::bind("127.0.0.2:0", echo_datagram()).unwrap();
    let unix = PooledUnixStreamServer::builder()
        .concurrency(Pooled::new().workers(1))
        .bind(dir.join("stream"), echo())
        .unwrap();
    let packets = UnixDatagramServer::bind(dir.join("packets"), echo_datagram()).unwrap();
    let endpoints = vec![
        endpoint_of("tcp", tcp.local_addr()),
        endpoint_of("udp", udp.local_addr()),
        endpoint_of("unix", unix.local_addr()),
        endpoint_of("unixgram", packets.local_addr()),
    ];
    (
        ServerGroup::new()
            .with(tcp)
            .with(udp)
            .with(unix)
            .with(packets),
        endpoints,
    )
}

#[track_caller]
fn all_answer(endpoints: &[Endpoint]) {
    for endpoint in endpoints {
        assert_eq!(
            Client::connect(endpoint).unwrap().ask("hello"),
            "hello",
            "{endpoint:?}"
        );
    }
}

#[test]
fn one_call_serves_all_and_one_stop_stops_all() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, endpoints) = group(dir.path());
    let handle = group.handle();
    let serving = thread::spawn(move || group.serve_forever().map(|()| group));
    all_answer(&endpoints);
    handle.shutdown();
    assert!(handle.wait(Some(PATIENCE)));
    let mut group = serving.join().unwrap().unwrap();

    // And again, on the same listeners.
    let handle = group.handle();
    let serving = thread::spawn(move || group.serve_forever());
    all_answer(&endpoints);
    handle.drain(PATIENCE);
    serving.join().unwrap().unwrap();
    for each in handle.handles() {
        assert_eq!(each.counters().accepted, 2);
        assert!(each.drain_report().is_some());
    }
    for endpoint in endpoints
        .iter()
        .filter(|it| !matches!(it, Endpoint::Udp(_)))
    {
        assert!(Client::connect(endpoint).is_err(), "{endpoint:?}");
    }
}

#[test]
fn one_member_can_stop_while_the_others_serve() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, endpoints) = group(dir.path());
    let handle = group.handle();
    let serving = thread::spawn(move || group.serve_forever());
    all_answer(&endpoints);
    handle.handles()[0].drain(PATIENCE);
    assert!(handle.handles()[0].wait(Some(PATIENCE)));
    assert!(Client::connect(&endpoints[0]).is_err());
    all_answer(&endpoints[1..]);
    handle.shutdown();
    serving.join().unwrap().unwrap();
}

/// It is there for as long as any other, through their drain and a stop.
#[test]
fn a_companion_outlives_a_drain() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, endpoints) = group(dir.path());
    let sidecar = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let beside = Endpoint::Tcp(sidecar.local_addr().as_inet().unwrap());
    let its = sidecar.handle();
    group.add_sidecar(sidecar);
    let handle = group.handle();
    assert_eq!(handle.handles().len(), endpoints.len());
    let serving = thread::spawn(move || group.serve_forever().map(|()| group));
    all_answer(&endpoints);
    handle.shutdown();
    let mut group = serving.join().unwrap().unwrap();
    assert_eq!(its.state(), ServerState::Stopped);

    let serving = thread::spawn(move || group.serve_forever());
    let held = Client::connect(&endpoints[0]).map(|mut client| {
        client.ask("hello");
        client
    });
    handle.drain(PATIENCE * 3);
    eventually(PATIENCE, "a listener to close", || {
        Client::connect(&endpoints[0]).is_err()
    });
    let mut client = Client::connect(&beside).unwrap();
    assert_eq!(client.ask("still there"), "still there");
    assert!(!serving.is_finished());
    drop(held);
    // Who holds on to it is cut.
    serving.join().unwrap().unwrap();
    assert_eq!(its.state(), ServerState::Closed);
    assert_eq!(its.drain_report().unwrap().cancelled, 1);
    assert!(client.was_cut());
}

#[test]
fn a_group_watches_descriptors_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, endpoints) = group(dir.path());
    let (mut signal, watched) = UnixStream::pair().unwrap();
    let (sender, calls) = channel();
    let handle = group.handle();
    group.watch(watched.try_clone().unwrap(), move || {
        use std::io::Read;
        let mut byte = [0];
        (&watched).read_exact(&mut byte)?;
        sender.send(byte[0])?;
        if byte == *b"q" {
            handle.shutdown();
        }
        Ok(())
    });
    let serving = thread::spawn(move || group.serve_forever());
    signal.write_all(b"a").unwrap();
    assert_eq!(calls.recv_timeout(PATIENCE).unwrap(), b'a');
    all_answer(&endpoints);
    signal.write_all(b"q").unwrap();
    serving.join().unwrap().unwrap();
}

/// It may not have read its descriptor, which is then ready for ever.
#[test]
fn a_watch_that_fails_is_not_called_again() {
    for panics in [false, true] {
        let (mut signal, watched) = UnixStream::pair().unwrap();
        let (sender, calls) = channel();
        let mut server = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
        server.watch(watched, move || {
            sender.send(())?;
            assert!(!panics, "told to panic");
            Err::<(), _>("told to fail".into())
        });
        let running = common::running::Running::start(server);
        signal.write_all(b"x").unwrap();
        calls.recv_timeout(PATIENCE).unwrap();
        let failures = || running.handle.counters().hook_failures;
        eventually(PATIENCE, "the failure to be counted", || failures() == 1);
        signal.write_all(b"x").unwrap();
        for _ in 0..3 {
            assert_eq!(running.client().ask("still there?"), "still there?");
        }
        assert!(calls.try_recv().is_err());
        assert_eq!(failures(), 1);
    }
}

#[test]
fn a_member_that_cannot_serve_ends_the_group() {
    let dir = tempfile::tempdir().unwrap();
    let good = ThreadingUnixStreamServer::bind(dir.path().join("socket"), echo()).unwrap();
    let mut closed = PooledTcpServer::bind("127.0.0.1:0", echo()).unwrap();
    closed.handle().drain(Duration::ZERO);
    closed.serve_forever().unwrap();
    let mut group = ServerGroup::new().with(good).with(closed);
    let error = group.serve_forever().unwrap_err();
    assert!(matches!(error, ServeError::Closed), "{error}");
    assert!(group.handle().wait(Some(PATIENCE)), "nobody serves");
}

#[test]
fn a_group_has_one_epoll_set_for_all() {
    alone("a_group_has_one_epoll_set_for_all", || {
        let own = std::process::id();
        let sets = || {
            let files = open_files(own);
            files
                .iter()
                .filter(|file| file.contains("eventpoll"))
                .count()
        };
        let dir = tempfile::tempdir().unwrap();
        let (mut group, endpoints) = group(dir.path());
        let handle = group.handle();
        let serving = thread::spawn(move || group.serve_forever().map(|()| group));
        all_answer(&endpoints);
        assert_eq!(sets(), 1);
        handle.shutdown();
        drop(serving.join().unwrap().unwrap());
    });
}

#[test]
fn an_empty_group_is_done_at_once() {
    ServerGroup::new().serve_forever().unwrap();
    assert!(ServerGroup::new().handle().wait(None));
}
