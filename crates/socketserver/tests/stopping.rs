//! How fast a server stops, and who may ask it to, when.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails, or is skipped"
)]

mod common;

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::client::Endpoint;
use common::process::{Companion, errand, is_asleep, switches, threads, told};
use common::running::{Running, echo, echo_datagram};
use common::{PATIENCE, eventually};
use socketserver::{
    Concurrency, Pooled, PooledTcpServer, Sequential, ServeError, Server, TcpServer, Threading,
    ThreadingTcpServer, ThreadingUdpServer, UdpServer, UnixStreamServer, transport::Tcp,
};

/// From the call to the end of `serve_forever`. The reference polls twice a second.
#[test]
fn an_idle_server_stops_within_ten_milliseconds() {
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
                    eventually(PATIENCE, "serving", || handle.is_serving());
                    let asked = Instant::now();
                    handle.shutdown();
                    serving.join().unwrap().duration_since(asked)
                })
            })
            .collect();
        times.sort();
        (times[times.len() / 2], times[times.len() - 1])
    };
    // A busy machine gets three chances.
    let mut seen = Vec::new();
    let good = (0..3).any(|_| {
        seen.push(attempt());
        seen.last()
            .is_some_and(|(median, _)| *median < Duration::from_millis(10))
    });
    assert!(good, "median and longest: {seen:?}");
    assert!(
        seen.iter()
            .all(|(_, longest)| *longest < Duration::from_secs(2)),
        "{seen:?}"
    );
}

fn race<C: Concurrency>() {
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
        assert!(handle.wait(Some(PATIENCE)), "a stop was lost: {}", C::NAME);
        thread.join().unwrap().unwrap();
    }
}

/// Whichever comes first in each of them, the start or the stop.
#[test]
fn twenty_servers_start_and_stop_at_once() {
    for _ in 0..5 {
        race::<Sequential>();
        race::<Threading>();
        race::<Pooled>();
    }
}

#[test]
fn waiting_has_a_limit_and_an_answer() {
    let mut server = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let handle = server.handle();
    assert!(handle.wait(None), "nobody serves yet");
    assert!(!handle.is_serving());
    let serving = thread::spawn(move || server.serve_forever());
    eventually(PATIENCE, "serving", || handle.is_serving());
    let since = Instant::now();
    assert!(!handle.wait(Some(Duration::from_millis(30))));
    assert!(since.elapsed() >= Duration::from_millis(30));

    let waiting: Vec<_> = (0..4)
        .map(|_| handle.clone())
        .map(|handle| thread::spawn(move || handle.wait(Some(PATIENCE))))
        .collect();
    handle.shutdown();
    handle.shutdown();
    assert!(waiting.into_iter().all(|thread| thread.join().unwrap()));
    serving.join().unwrap().unwrap();
    assert!(!handle.is_serving());
    // The server is gone, and its controller no worse for it.
    handle.shutdown();
    assert!(handle.wait(None));
}

#[test]
fn a_drained_server_is_closed_for_good() {
    let mut server = UdpServer::bind("127.0.0.1:0", echo_datagram()).unwrap();
    let handle = server.handle();
    assert_eq!(handle.drain_report(), None);
    handle.drain(PATIENCE);
    assert!(handle.is_draining());
    server.serve_forever().unwrap();
    assert!(handle.drain_report().is_some());
    assert_eq!(server.local_addrs().count(), 0);
    let closed = server.serve_forever().unwrap_err();
    assert!(matches!(closed, ServeError::Closed), "{closed}");
    let closed = server.handle_request(Some(PATIENCE)).unwrap_err();
    assert!(matches!(closed, ServeError::Closed), "{closed}");
    // To close what is closed is no error; the report is the same.
    assert_eq!(Some(server.server_close().unwrap()), handle.drain_report());
}

#[test]
fn the_earliest_of_several_deadlines_holds() {
    let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
    let mut client = running.client();
    assert_eq!(client.ask("hello"), "hello");
    running.handle.drain(Duration::from_secs(3600));
    let Endpoint::Tcp(address) = running.endpoint else {
        panic!("no TCP");
    };
    let is_free = || std::net::TcpListener::bind(address).is_ok();
    eventually(PATIENCE, "the listener to be closed", is_free);
    assert_eq!(running.handle.active_count(), 1);
    running.handle.drain(Duration::MAX);
    running.handle.drain(Duration::ZERO);
    assert!(client.was_cut());
    let handle = running.handle.clone();
    running.ends().unwrap();
    let report = handle.drain_report().unwrap();
    assert_eq!(
        (report.finished, report.cancelled, report.abandoned),
        (0, 1, 0)
    );
}

/// With somebody connected and waiting, even. A thread that makes a call has to run for it, and
/// when it sleeps again it is switched away from: the kernel counts that.
#[test]
fn an_idle_server_makes_no_system_call() {
    const NAME: &str = "an_idle_server_makes_no_system_call";
    if errand().is_some() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let threading = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
        let pooled = PooledTcpServer::bind("127.0.0.1:0", echo()).unwrap();
        let pooled = Running::start(pooled);
        let udp = Running::start(ThreadingUdpServer::bind("127.0.0.2:0", echo_datagram()).unwrap());
        let sequential = Running::start(TcpServer::bind("127.0.0.1:0", echo()).unwrap());
        let _never_asked = Running::start(UnixStreamServer::bind(path, echo()).unwrap());
        let threads = || threads(std::process::id());
        let before = threads();
        let mut clients = Vec::new();
        for running in [&threading, &pooled, &udp, &sequential] {
            let mut client = running.client();
            assert_eq!(client.ask("hello"), "hello");
            clients.push(client);
        }
        // One for each of the two connections; that of the datagram comes to its end.
        eventually(PATIENCE, "no thread to be left over", || {
            threads() == before + 2
        });
        println!("idle");
        // Waits for its own input, in one call.
        told();
        return;
    }
    let seconds = std::env::var("SOCKETSERVER_IDLE_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut sidecar = Companion::start(NAME, "idle");
    sidecar.hears("idle");
    // Whoever has just answered is on the way back to its wait.
    eventually(PATIENCE, "every thread to wait", || {
        is_asleep(sidecar.pid())
    });
    let before = switches(sidecar.pid());
    assert_eq!(before.len(), threads(sidecar.pid()));
    thread::sleep(Duration::from_secs(seconds));
    assert_eq!(switches(sidecar.pid()), before);
    sidecar.tell("enough");
    sidecar.passes();
}
