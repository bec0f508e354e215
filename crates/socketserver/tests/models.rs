//! What each concurrency model has of its own: its threads, their number, and their end.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails, or is skipped"
)]

mod common;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::process::{alone, descriptors, nobody_starts, threads};
use common::running::{Running, echo};
use common::{PATIENCE, eventually};
use socketserver::{
    Connection, DrainReport, Forking, ForkingTcpServer, OverloadPolicy, Pooled, PooledTcpServer,
    RequestOutcome, ServeError, Threading, ThreadingTcpServer, handler_fn,
};

fn own_threads() -> usize {
    threads(std::process::id())
}

#[test]
fn ten_requests_leave_no_thread() {
    alone("ten_requests_leave_no_thread", || {
        let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
        let before = own_threads();
        for _ in 0..10 {
            assert_eq!(running.client().ask("hello"), "hello");
        }
        eventually(PATIENCE, "every thread to end", || own_threads() == before);
        assert!(running.handle.active().is_empty());
    });
}

#[test]
fn a_pool_makes_threads_as_they_are_needed_and_keeps_them() {
    alone(
        "a_pool_makes_threads_as_they_are_needed_and_keeps_them",
        || {
            let pool = Pooled::new().workers(3).queue(100);
            let server = PooledTcpServer::builder().concurrency(pool);
            let running = Running::start(server.bind("127.0.0.1:0", echo()).unwrap());
            let before = own_threads();
            for _ in 0..20 {
                assert_eq!(running.client().ask("one at a time"), "one at a time");
                eventually(PATIENCE, "the end", || running.handle.active_count() == 0);
            }
            assert!(own_threads() <= before + 3, "{}", own_threads());
            let mut clients: Vec<_> = (0..3).map(|_| running.client()).collect();
            for client in &mut clients {
                assert_eq!(client.ask("all at once"), "all at once");
            }
            assert_eq!(own_threads(), before + 3);
            drop(clients);
            running.handle.drain(PATIENCE);
            running.ends().unwrap();
            eventually(PATIENCE, "the pool to end with its server", || {
                own_threads() < before
            });
        },
    );
}

#[test]
fn what_waits_in_a_pools_queue_is_served_in_order() {
    let pool = Pooled::new().workers(1).queue(10);
    let server = PooledTcpServer::builder().concurrency(pool);
    let running = Running::start(server.bind("127.0.0.1:0", echo()).unwrap());
    let mut clients: Vec<_> = (0..5).map(|_| running.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.say(&format!("client {n}")).unwrap();
    }
    eventually(PATIENCE, "all to be accepted", || {
        running.handle.active_count() == 5
    });
    for (n, mut client) in clients.into_iter().enumerate() {
        assert_eq!(client.hear().unwrap(), Some(format!("client {n}")));
    }
}

#[test]
fn a_full_pool_rejects_if_it_is_told_to() {
    let pool = Pooled::new()
        .workers(1)
        .queue(1)
        .overload_policy(OverloadPolicy::Reject);
    let server = PooledTcpServer::builder().concurrency(pool);
    let running = Running::start(server.bind("127.0.0.1:0", echo()).unwrap());
    let mut served = running.client();
    assert_eq!(served.ask("hello"), "hello");
    let mut queued = running.client();
    eventually(PATIENCE, "the queue to fill", || {
        running.handle.active_count() == 2
    });
    for _ in 0..3 {
        assert!(running.client().was_cut());
    }
    drop(served);
    assert_eq!(queued.ask("hello"), "hello");
    assert_eq!(running.handle.counters().refused, 3);
}

/// A handler that nothing can cut: it waits for the test, and not for its connection.
fn stuck() -> (
    impl Fn(&mut Connection) -> socketserver::Result<()> + Send + Sync,
    impl FnOnce(),
) {
    let (release, gate) = sync_channel::<()>(0);
    let gate = Mutex::new(gate);
    let wait = move |conn: &mut Connection| {
        conn.write_all(b"stuck\n")?;
        let _ = gate.lock().unwrap().recv();
        Ok(())
    };
    (wait, move || drop(release))
}

#[test]
fn a_drain_does_not_wait_for_daemon_threads() {
    let (handle, release) = stuck();
    let model = Threading::new().daemon_threads();
    let server = ThreadingTcpServer::builder().concurrency(model);
    let running = Running::start(server.bind("127.0.0.1:0", handler_fn(handle)).unwrap());
    let mut client = running.client();
    assert_eq!(client.hear().unwrap().as_deref(), Some("stuck"));
    let handle = running.handle.clone();
    handle.drain(Duration::from_secs(3600));
    running.ends().unwrap();
    let report = handle.drain_report().unwrap();
    assert_eq!(
        (report.finished, report.cancelled, report.abandoned),
        (0, 0, 0)
    );
    // It was not cut, and goes on for as long as it likes.
    assert_eq!(handle.active_count(), 1);
    release();
    assert!(client.rest().unwrap().is_empty());
    eventually(PATIENCE, "its end", || handle.active_count() == 0);
}

#[test]
fn a_close_that_is_told_not_to_block_does_not() {
    let _quiet = nobody_starts();
    let (handle, release) = stuck();
    let builder = ThreadingTcpServer::builder().block_on_close(None);
    let mut server = builder.bind("127.0.0.1:0", handler_fn(handle)).unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let mut client =
        common::client::Client::connect(&common::client::Endpoint::Tcp(address)).unwrap();
    assert_eq!(
        server.handle_request(Some(PATIENCE)).unwrap(),
        RequestOutcome::Request
    );
    assert_eq!(client.hear().unwrap().as_deref(), Some("stuck"));
    assert_eq!(server.server_close().unwrap(), DrainReport::default());
    assert!(std::net::TcpStream::connect(address).is_err());
    release();
    assert!(client.rest().unwrap().is_empty());
}

#[test]
fn a_close_gives_a_stuck_handler_its_time_and_no_more() {
    let (handle, release) = stuck();
    let limit = Duration::from_millis(50);
    let builder = ThreadingTcpServer::builder().block_on_close(Some(limit));
    let mut server = builder.bind("127.0.0.1:0", handler_fn(handle)).unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let mut client =
        common::client::Client::connect(&common::client::Endpoint::Tcp(address)).unwrap();
    server.handle_request(Some(PATIENCE)).unwrap();
    assert_eq!(client.hear().unwrap().as_deref(), Some("stuck"));
    let since = Instant::now();
    let report = server.server_close().unwrap();
    assert_eq!((report.cancelled, report.abandoned), (1, 1));
    assert!(
        report.elapsed >= limit && since.elapsed() < PATIENCE,
        "{report:?}"
    );
    release();
}

#[test]
fn a_factory_makes_a_handler_for_each_request_and_hands_in_what_they_share() {
    struct Numbered(usize);
    impl socketserver::RequestHandler<Connection> for Numbered {
        fn handle(&mut self, conn: &mut Connection) -> socketserver::Result<()> {
            Ok(writeln!(conn, "{}", self.0)?)
        }
    }
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let factory = move || Numbered(count.fetch_add(1, Ordering::Relaxed));
    let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", factory).unwrap());
    for n in 0..3 {
        assert_eq!(running.client().hear().unwrap(), Some(n.to_string()));
    }
    assert_eq!(made.load(Ordering::Relaxed), 3);
}

/// The harness runs tests on threads, so this process is just what a forking server refuses.
#[test]
fn a_process_with_threads_is_not_forked() {
    let model = Forking::new().max_children(2);
    let builder = ForkingTcpServer::builder().concurrency(model);
    let mut server = builder.bind("127.0.0.1:0", echo()).unwrap();
    let (stop, stopped) = channel::<()>();
    let other = thread::spawn(move || stopped.recv());
    let refused = server.serve_forever().unwrap_err();
    let ServeError::ThreadsRunning { threads } = &refused else {
        panic!("{refused}");
    };
    assert!(*threads >= 2);
    assert!(
        refused.to_string().contains("before any thread is started"),
        "{refused}"
    );
    drop(stop);
    let _ = other.join();
}

#[test]
fn a_thousand_requests_leave_nothing_behind() {
    alone("a_thousand_requests_leave_nothing_behind", || {
        let pid = std::process::id();
        let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
        let idle = own_threads();
        assert_eq!(running.client().ask("first"), "first");
        eventually(PATIENCE, "the first to end", || {
            running.handle.active_count() == 0
        });
        eventually(PATIENCE, "its thread to end", || own_threads() == idle);
        let before = (descriptors(pid), own_threads());
        for _ in 0..1000 {
            assert_eq!(running.client().ask("next"), "next");
        }
        eventually(PATIENCE, "all to end", || {
            running.handle.active_count() == 0
        });
        let now = || (descriptors(pid), own_threads());
        eventually(
            PATIENCE,
            "descriptors and threads to be what they were",
            || now() == before,
        );
        assert_eq!(running.handle.counters().ended, 1001);
    });
}

#[test]
fn events_and_counters_agree() {
    let (sender, reasons) = channel();
    let by_command = handler_fn(|conn: &mut Connection| {
        let mut command = [0; 1];
        conn.read_exact(&mut command)?;
        match &command {
            b"e" => Err("told to fail".into()),
            b"p" => panic!("told to panic"),
            b"t" => {
                conn.set_read_timeout(Some(Duration::from_millis(20)))?;
                Ok(conn.read_exact(&mut command)?)
            }
            _ => Ok(()),
        }
    });
    let server = ThreadingTcpServer::builder()
        .handle_error(|_, _| Ok(()))
        .on_event(move |event| {
            if let socketserver::Event::Ended(_, end) = event {
                let _ = sender.send(end.reason);
            }
        })
        .bind("127.0.0.1:0", by_command)
        .unwrap();
    let running = Running::start(server);
    for (command, reason) in [
        (b"c", socketserver::EndReason::Completed),
        (b"e", socketserver::EndReason::Failed),
        (b"p", socketserver::EndReason::Panicked),
        (b"t", socketserver::EndReason::TimedOut),
    ] {
        let mut client = running.client();
        client.send(command).unwrap();
        assert_eq!(reasons.recv_timeout(PATIENCE).unwrap(), reason);
    }
    let counters = running.handle.counters();
    assert_eq!((counters.accepted, counters.ended), (4, 4));
    assert_eq!(
        (counters.failed, counters.panicked, counters.timed_out),
        (1, 1, 1)
    );
    assert_eq!(
        (counters.refused, counters.killed, counters.hook_failures),
        (0, 0, 0)
    );
    assert_eq!(counters.bytes_received, 4);
}
