//! Shutdown: its latency, concurrent calls, and calls at any time.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails or is skipped"
)]

mod common;

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::client::Endpoint;
use common::process::{TestProcess, child_role, is_asleep, read_stdin_line, switches, threads};
use common::running::{Running, echo, echo_datagram};
use common::{TIMEOUT, eventually};
use socketserver::{
    Concurrency, Pooled, PooledTcpServer, Sequential, ServeError, Server, TcpServer, Threading,
    ThreadingTcpServer, ThreadingUdpServer, UdpServer, UnixStreamServer, transport::Tcp,
};

/// Measures the time from the call to the end of `serve_forever`. Python's socketserver polls twice
/// a second.
#[test]
fn idle_server_stops_within_ten_milliseconds() {
    let attempt = || {
        let mut server = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
        let handle = server.handle();
        let mut times: Vec<_> = (0..15)
            .map(|_| {
                thread::scope(|scope| {
                    let serving = scope.spawn(|| {
                        server.serve_forever().unwrap();
                        Instant::now()
                    });
                    eventually(TIMEOUT, "serving", || handle.is_serving());
                    let start = Instant::now();
                    handle.shutdown();
                    serving.join().unwrap().duration_since(start)
                })
            })
            .collect();
        times.sort();
        (times[times.len() / 2], times[times.len() - 1])
    };
    // Three attempts, because the machine may be busy.
    let mut seen = Vec::new();
    let passed = (0..3).any(|_| {
        seen.push(attempt());
        seen.last()
            .is_some_and(|(median, _)| *median < Duration::from_millis(10))
    });
    assert!(passed, "median and longest: {seen:?}");
    assert!(
        seen.iter()
            .all(|(_, longest)| *longest < Duration::from_secs(2)),
        "{seen:?}"
    );
}

fn race_start_and_stop<C: Concurrency>() {
    const SERVERS: usize = 20;
    let start = Arc::new(Barrier::new(2 * SERVERS));
    let servers: Vec<_> = (0..SERVERS)
        .map(|_| {
            Server::<Tcp, C>::builder()
                .bind("127.0.0.1:0", echo())
                .unwrap()
        })
        .collect();
    let handles: Vec<_> = servers.iter().map(Server::handle).collect();
    let serving: Vec<_> = servers
        .into_iter()
        .map(|mut server| {
            let start = start.clone();
            thread::spawn(move || {
                start.wait();
                server.serve_forever()
            })
        })
        .collect();
    let stopping: Vec<_> = handles
        .iter()
        .cloned()
        .map(|handle| {
            let start = start.clone();
            thread::spawn(move || {
                start.wait();
                handle.shutdown();
            })
        })
        .collect();
    for thread in stopping {
        thread.join().unwrap();
    }
    for (handle, thread) in handles.iter().zip(serving) {
        assert!(handle.wait(Some(TIMEOUT)), "a stop was lost: {}", C::NAME);
        thread.join().unwrap().unwrap();
    }
}

/// The start and the stop race with each other in each server.
#[test]
fn shutdown_is_never_lost_in_a_race_with_the_start() {
    for _ in 0..5 {
        race_start_and_stop::<Sequential>();
        race_start_and_stop::<Threading>();
        race_start_and_stop::<Pooled>();
    }
}

#[test]
fn wait_returns_false_at_its_timeout_and_true_after_shutdown() {
    let mut server = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let handle = server.handle();
    assert!(handle.wait(None), "the server does not serve yet");
    assert!(!handle.is_serving());
    let serving = thread::spawn(move || server.serve_forever());
    eventually(TIMEOUT, "serving", || handle.is_serving());
    let since = Instant::now();
    assert!(!handle.wait(Some(Duration::from_millis(30))));
    assert!(since.elapsed() >= Duration::from_millis(30));

    let waiting: Vec<_> = (0..4)
        .map(|_| handle.clone())
        .map(|handle| thread::spawn(move || handle.wait(Some(TIMEOUT))))
        .collect();
    handle.shutdown();
    handle.shutdown();
    assert!(waiting.into_iter().all(|thread| thread.join().unwrap()));
    serving.join().unwrap().unwrap();
    assert!(!handle.is_serving());
    // The server is dropped, and its handle still works.
    handle.shutdown();
    assert!(handle.wait(None));
}

#[test]
fn drained_server_stays_closed() {
    let mut server = UdpServer::bind("127.0.0.1:0", echo_datagram()).unwrap();
    let handle = server.handle();
    assert_eq!(handle.drain_report(), None);
    handle.drain(TIMEOUT);
    assert!(handle.is_draining());
    server.serve_forever().unwrap();
    assert!(handle.drain_report().is_some());
    assert_eq!(server.local_addrs().count(), 0);
    let closed = server.serve_forever().unwrap_err();
    assert!(matches!(closed, ServeError::Closed), "{closed}");
    let closed = server.handle_request(Some(TIMEOUT)).unwrap_err();
    assert!(matches!(closed, ServeError::Closed), "{closed}");
    // Closing a closed server is not an error, and the report is the same.
    assert_eq!(Some(server.server_close().unwrap()), handle.drain_report());
}

#[test]
fn earliest_drain_deadline_applies() {
    let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
    let mut client = running.client();
    assert_eq!(client.ask("hello"), "hello");
    running.handle.drain(Duration::from_secs(3600));
    let Endpoint::Tcp(address) = running.endpoint else {
        panic!("no TCP");
    };
    let is_free = || std::net::TcpListener::bind(address).is_ok();
    eventually(TIMEOUT, "the listener to be closed", is_free);
    assert_eq!(running.handle.active_count(), 1);
    running.handle.drain(Duration::MAX);
    running.handle.drain(Duration::ZERO);
    assert!(client.was_closed_by_server());
    let handle = running.handle.clone();
    running.wait_until_stopped().unwrap();
    let report = handle.drain_report().unwrap();
    assert_eq!(
        (report.finished, report.cancelled, report.abandoned),
        (0, 1, 0)
    );
}

/// Also not with connected and idle clients. A thread that makes a system call runs, and is
/// switched away from when it sleeps again. The kernel counts these switches.
#[test]
fn idle_server_makes_no_system_call() {
    const NAME: &str = "idle_server_makes_no_system_call";
    if child_role().is_some() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let threading = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
        let pooled = PooledTcpServer::bind("127.0.0.1:0", echo()).unwrap();
        let pooled = Running::start(pooled);
        let udp = Running::start(ThreadingUdpServer::bind("127.0.0.2:0", echo_datagram()).unwrap());
        let sequential = Running::start(TcpServer::bind("127.0.0.1:0", echo()).unwrap());
        let _never_used = Running::start(UnixStreamServer::bind(path, echo()).unwrap());
        let threads = || threads(std::process::id());
        let before = threads();
        let mut clients = Vec::new();
        for running in [&threading, &pooled, &udp, &sequential] {
            let mut client = running.client();
            assert_eq!(client.ask("hello"), "hello");
            clients.push(client);
        }
        // One thread for each of the two connections; the thread of the datagram ends.
        eventually(TIMEOUT, "the other threads to end", || {
            threads() == before + 2
        });
        println!("idle");
        // Waits for its own input, in one call.
        read_stdin_line();
        return;
    }
    let seconds = std::env::var("SOCKETSERVER_IDLE_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut sidecar = TestProcess::start(NAME, "idle");
    sidecar.expect_line("idle");
    // A thread that has just replied is on the way back to its wait.
    eventually(TIMEOUT, "every thread to wait", || is_asleep(sidecar.pid()));
    let before = switches(sidecar.pid());
    assert_eq!(before.len(), threads(sidecar.pid()));
    thread::sleep(Duration::from_secs(seconds));
    assert_eq!(switches(sidecar.pid()), before);
    sidecar.send_line("enough");
    sidecar.assert_passed();
}
