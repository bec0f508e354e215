//! A group: several servers of different kinds in one accept loop.

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use common::client::{Client, Endpoint};
use common::process::{in_own_process, open_files};
use common::running::{echo, echo_datagram, endpoint_of};
use common::{TIMEOUT, eventually};
use socketserver::{
    Pooled, PooledTcpServer, PooledUnixStreamServer, ServeError, ServerGroup, ServerState,
    ThreadingTcpServer, ThreadingUnixStreamServer, UdpServer, UnixDatagramServer,
};

/// Returns a group of threaded, sequential and pooled servers, and their addresses.
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
fn assert_all_reply(endpoints: &[Endpoint]) {
    for endpoint in endpoints {
        assert_eq!(
            Client::connect(endpoint).unwrap().ask("hello"),
            "hello",
            "{endpoint:?}"
        );
    }
}

#[test]
fn group_serves_and_stops_all_members() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, endpoints) = group(dir.path());
    let handle = group.handle();
    let serving = thread::spawn(move || group.serve_forever().map(|()| group));
    assert_all_reply(&endpoints);
    handle.shutdown();
    assert!(handle.wait(Some(TIMEOUT)));
    let mut group = serving.join().unwrap().unwrap();

    // The same listeners serve again.
    let handle = group.handle();
    let serving = thread::spawn(move || group.serve_forever());
    assert_all_reply(&endpoints);
    handle.drain(TIMEOUT);
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
fn member_can_drain_while_the_others_serve() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, endpoints) = group(dir.path());
    let handle = group.handle();
    let serving = thread::spawn(move || group.serve_forever());
    assert_all_reply(&endpoints);
    handle.handles()[0].drain(TIMEOUT);
    assert!(handle.handles()[0].wait(Some(TIMEOUT)));
    assert!(Client::connect(&endpoints[0]).is_err());
    assert_all_reply(&endpoints[1..]);
    handle.shutdown();
    serving.join().unwrap().unwrap();
}

/// A sidecar serves as long as any other member, through their drain and a shutdown.
#[test]
fn sidecar_serves_until_the_drain_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, endpoints) = group(dir.path());
    let sidecar = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let sidecar_endpoint = Endpoint::Tcp(sidecar.local_addr().as_inet().unwrap());
    let sidecar_handle = sidecar.handle();
    group.add_sidecar(sidecar);
    let handle = group.handle();
    assert_eq!(handle.handles().len(), endpoints.len());
    let serving = thread::spawn(move || group.serve_forever().map(|()| group));
    assert_all_reply(&endpoints);
    handle.shutdown();
    let mut group = serving.join().unwrap().unwrap();
    assert_eq!(sidecar_handle.state(), ServerState::Stopped);

    let serving = thread::spawn(move || group.serve_forever());
    let held = Client::connect(&endpoints[0]).map(|mut client| {
        client.ask("hello");
        client
    });
    handle.drain(TIMEOUT * 3);
    eventually(TIMEOUT, "a listener to close", || {
        Client::connect(&endpoints[0]).is_err()
    });
    let mut client = Client::connect(&sidecar_endpoint).unwrap();
    assert_eq!(client.ask("still there"), "still there");
    assert!(!serving.is_finished());
    drop(held);
    // A client that stays connected to the sidecar is cancelled.
    serving.join().unwrap().unwrap();
    assert_eq!(sidecar_handle.state(), ServerState::Closed);
    assert_eq!(sidecar_handle.drain_report().unwrap().cancelled, 1);
    assert!(client.was_closed_by_server());
}

#[test]
fn group_watches_its_own_descriptors() {
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
    assert_eq!(calls.recv_timeout(TIMEOUT).unwrap(), b'a');
    assert_all_reply(&endpoints);
    signal.write_all(b"q").unwrap();
    serving.join().unwrap().unwrap();
}

/// A failed watch may not have read its descriptor, which then stays ready.
#[test]
fn failed_watch_is_not_called_again() {
    for panics in [false, true] {
        let (mut signal, watched) = UnixStream::pair().unwrap();
        let (sender, calls) = channel();
        let mut server = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
        server.watch(watched, move || {
            sender.send(())?;
            assert!(!panics, "asked to panic");
            Err::<(), _>("asked to fail".into())
        });
        let running = common::running::Running::start(server);
        signal.write_all(b"x").unwrap();
        calls.recv_timeout(TIMEOUT).unwrap();
        let failures = || running.handle.counters().hook_failures;
        eventually(TIMEOUT, "the failure to be counted", || failures() == 1);
        signal.write_all(b"x").unwrap();
        for _ in 0..3 {
            assert_eq!(running.client().ask("still there?"), "still there?");
        }
        assert!(calls.try_recv().is_err());
        assert_eq!(failures(), 1);
    }
}

#[test]
fn member_that_cannot_serve_ends_the_group() {
    let dir = tempfile::tempdir().unwrap();
    let good = ThreadingUnixStreamServer::bind(dir.path().join("socket"), echo()).unwrap();
    let mut closed = PooledTcpServer::bind("127.0.0.1:0", echo()).unwrap();
    closed.handle().drain(Duration::ZERO);
    closed.serve_forever().unwrap();
    let mut group = ServerGroup::new().with(good).with(closed);
    let error = group.serve_forever().unwrap_err();
    assert!(matches!(error, ServeError::Closed), "{error}");
    assert!(group.handle().wait(Some(TIMEOUT)), "the group still serves");
}

#[test]
fn group_uses_one_epoll_set() {
    in_own_process("group_uses_one_epoll_set", || {
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
        assert_all_reply(&endpoints);
        assert_eq!(sets(), 1);
        handle.shutdown();
        drop(serving.join().unwrap().unwrap());
    });
}

#[test]
fn empty_group_returns_at_once() {
    ServerGroup::new().serve_forever().unwrap();
    assert!(ServerGroup::new().handle().wait(None));
}
