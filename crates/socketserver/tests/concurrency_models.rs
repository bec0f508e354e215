//! Properties of single concurrency models: the start, number and end of their threads.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails or is skipped"
)]

mod common;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::process::{block_process_starts, descriptors, in_own_process, threads};
use common::running::{Running, echo};
use common::{TIMEOUT, eventually};
use socketserver::{
    Connection, DrainReport, Forking, ForkingTcpServer, OverloadPolicy, Pooled, PooledTcpServer,
    RequestOutcome, ServeError, Threading, ThreadingTcpServer, handler_fn,
};

fn own_threads() -> usize {
    threads(std::process::id())
}

#[test]
fn ten_requests_leave_no_thread() {
    in_own_process("ten_requests_leave_no_thread", || {
        let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
        let before = own_threads();
        for _ in 0..10 {
            assert_eq!(running.client().ask("hello"), "hello");
        }
        eventually(TIMEOUT, "every thread to end", || own_threads() == before);
        assert!(running.handle.active().is_empty());
    });
}

#[test]
fn pool_starts_threads_on_demand_and_keeps_them() {
    in_own_process("pool_starts_threads_on_demand_and_keeps_them", || {
        let pool = Pooled::new().workers(3).queue(100);
        let server = PooledTcpServer::builder().concurrency(pool);
        let running = Running::start(server.bind("127.0.0.1:0", echo()).unwrap());
        let before = own_threads();
        for _ in 0..20 {
            assert_eq!(running.client().ask("one at a time"), "one at a time");
            eventually(TIMEOUT, "the request to end", || {
                running.handle.active_count() == 0
            });
        }
        assert!(own_threads() <= before + 3, "{}", own_threads());
        let mut clients: Vec<_> = (0..3).map(|_| running.client()).collect();
        for client in &mut clients {
            assert_eq!(client.ask("all at once"), "all at once");
        }
        assert_eq!(own_threads(), before + 3);
        drop(clients);
        running.handle.drain(TIMEOUT);
        running.wait_until_stopped().unwrap();
        eventually(TIMEOUT, "the pool to end with its server", || {
            own_threads() < before
        });
    });
}

#[test]
fn queue_of_a_pool_is_served_in_order() {
    let pool = Pooled::new().workers(1).queue(10);
    let server = PooledTcpServer::builder().concurrency(pool);
    let running = Running::start(server.bind("127.0.0.1:0", echo()).unwrap());
    let mut clients: Vec<_> = (0..5).map(|_| running.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send_line(&format!("client {n}")).unwrap();
    }
    eventually(TIMEOUT, "all to be accepted", || {
        running.handle.active_count() == 5
    });
    for (n, mut client) in clients.into_iter().enumerate() {
        assert_eq!(client.receive_line().unwrap(), Some(format!("client {n}")));
    }
}

#[test]
fn full_pool_rejects_with_the_reject_policy() {
    let pool = Pooled::new()
        .workers(1)
        .queue(1)
        .overload_policy(OverloadPolicy::Reject);
    let server = PooledTcpServer::builder().concurrency(pool);
    let running = Running::start(server.bind("127.0.0.1:0", echo()).unwrap());
    let mut served = running.client();
    assert_eq!(served.ask("hello"), "hello");
    let mut queued = running.client();
    eventually(TIMEOUT, "the queue to fill", || {
        running.handle.active_count() == 2
    });
    for _ in 0..3 {
        assert!(running.client().was_closed_by_server());
    }
    drop(served);
    assert_eq!(queued.ask("hello"), "hello");
    assert_eq!(running.handle.counters().refused, 3);
}

/// Returns a handler that cannot be cancelled, because it waits for the test and not for its
/// connection.
fn stuck() -> (
    impl Fn(&mut Connection) -> socketserver::Result<()> + Send + Sync,
    impl FnOnce(),
) {
    let (release, wait_rx) = sync_channel::<()>(0);
    let wait_rx = Mutex::new(wait_rx);
    let wait = move |conn: &mut Connection| {
        conn.write_all(b"stuck\n")?;
        let _ = wait_rx.lock().unwrap().recv();
        Ok(())
    };
    (wait, move || drop(release))
}

#[test]
fn drain_does_not_wait_for_daemon_threads() {
    let (handle, release) = stuck();
    let model = Threading::new().daemon_threads();
    let server = ThreadingTcpServer::builder().concurrency(model);
    let running = Running::start(server.bind("127.0.0.1:0", handler_fn(handle)).unwrap());
    let mut client = running.client();
    assert_eq!(client.receive_line().unwrap().as_deref(), Some("stuck"));
    let handle = running.handle.clone();
    handle.drain(Duration::from_secs(3600));
    running.wait_until_stopped().unwrap();
    let report = handle.drain_report().unwrap();
    assert_eq!(
        (report.finished, report.cancelled, report.abandoned),
        (0, 0, 0)
    );
    // The request was not cancelled, and continues.
    assert_eq!(handle.active_count(), 1);
    release();
    assert!(client.read_rest().unwrap().is_empty());
    eventually(TIMEOUT, "the request to end", || handle.active_count() == 0);
}

#[test]
fn close_without_a_timeout_does_not_block() {
    let _no_starts = block_process_starts();
    let (handle, release) = stuck();
    let builder = ThreadingTcpServer::builder().block_on_close(None);
    let mut server = builder.bind("127.0.0.1:0", handler_fn(handle)).unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let mut client =
        common::client::Client::connect(&common::client::Endpoint::Tcp(address)).unwrap();
    assert_eq!(
        server.handle_request(Some(TIMEOUT)).unwrap(),
        RequestOutcome::Request
    );
    assert_eq!(client.receive_line().unwrap().as_deref(), Some("stuck"));
    assert_eq!(server.server_close().unwrap(), DrainReport::default());
    assert!(std::net::TcpStream::connect(address).is_err());
    release();
    assert!(client.read_rest().unwrap().is_empty());
}

#[test]
fn close_abandons_a_stuck_handler_at_its_timeout() {
    let (handle, release) = stuck();
    let limit = Duration::from_millis(50);
    let builder = ThreadingTcpServer::builder().block_on_close(Some(limit));
    let mut server = builder.bind("127.0.0.1:0", handler_fn(handle)).unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let mut client =
        common::client::Client::connect(&common::client::Endpoint::Tcp(address)).unwrap();
    server.handle_request(Some(TIMEOUT)).unwrap();
    assert_eq!(client.receive_line().unwrap().as_deref(), Some("stuck"));
    let since = Instant::now();
    let report = server.server_close().unwrap();
    assert_eq!((report.cancelled, report.abandoned), (1, 1));
    assert!(
        report.elapsed >= limit && since.elapsed() < TIMEOUT,
        "{report:?}"
    );
    release();
}

#[test]
fn factory_creates_a_handler_for_each_request() {
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
        assert_eq!(
            running.client().receive_line().unwrap(),
            Some(n.to_string())
        );
    }
    assert_eq!(made.load(Ordering::Relaxed), 3);
}

/// The test harness runs tests on threads, which is a process that a forking server rejects.
#[test]
fn forking_server_rejects_a_process_with_threads() {
    let model = Forking::new().max_children(2);
    let builder = ForkingTcpServer::builder().concurrency(model);
    let mut server = builder.bind("127.0.0.1:0", echo()).unwrap();
    let (stop, stopped) = channel::<()>();
    let other = thread::spawn(move || stopped.recv());
    let error = server.serve_forever().unwrap_err();
    let ServeError::ThreadsRunning { threads } = &error else {
        panic!("{error}");
    };
    assert!(*threads >= 2);
    assert!(
        error.to_string().contains("before starting any thread"),
        "{error}"
    );
    drop(stop);
    let _ = other.join();
}

#[test]
fn thousand_requests_leave_no_descriptor_and_no_thread() {
    in_own_process(
        "thousand_requests_leave_no_descriptor_and_no_thread",
        || {
            let pid = std::process::id();
            let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
            let idle = own_threads();
            assert_eq!(running.client().ask("first"), "first");
            eventually(TIMEOUT, "the first to end", || {
                running.handle.active_count() == 0
            });
            eventually(TIMEOUT, "its thread to end", || own_threads() == idle);
            let before = (descriptors(pid), own_threads());
            for _ in 0..1000 {
                assert_eq!(running.client().ask("next"), "next");
            }
            eventually(TIMEOUT, "all to end", || running.handle.active_count() == 0);
            let now = || (descriptors(pid), own_threads());
            eventually(
                TIMEOUT,
                "the descriptors and threads to be released",
                || now() == before,
            );
            assert_eq!(running.handle.counters().ended, 1001);
        },
    );
}

#[test]
fn events_and_counters_agree() {
    let (sender, reasons) = channel();
    let by_command = handler_fn(|conn: &mut Connection| {
        let mut command = [0; 1];
        conn.read_exact(&mut command)?;
        match &command {
            b"e" => Err("asked to fail".into()),
            b"p" => panic!("asked to panic"),
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
        assert_eq!(reasons.recv_timeout(TIMEOUT).unwrap(), reason);
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
