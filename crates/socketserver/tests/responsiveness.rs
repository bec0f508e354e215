//! The server reacts to commands at once: between two queued clients, under a flood, next to other
//! threads.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{TIMEOUT, eventually};
use socketserver::{
    Connection, RequestOutcome, ServeError, ServerGroup, ServerHandle, TcpServer,
    ThreadingTcpServer, Timeouts, handler_fn,
};

/// Waits until the only request has ended, or has sent nothing for 20 ms because it waits for its
/// client to read.
#[track_caller]
fn wait_until_write_blocks(handle: &ServerHandle) {
    let (mut sent, mut since) = (0, Instant::now());
    eventually(TIMEOUT, "the writer to wait", || {
        let now = handle.active().first().map_or(0, |live| live.sent);
        if now != sent {
            (sent, since) = (now, Instant::now());
        }
        let waits = sent > 0 && since.elapsed() > Duration::from_millis(20);
        waits || handle.counters().ended > 0
    });
}

#[test]
fn sequential_server_stops_between_two_queued_clients() {
    let handled = Arc::new(AtomicUsize::new(0));
    let count = handled.clone();
    let stop_at_once = handler_fn(move |conn: &mut Connection| {
        count.fetch_add(1, Ordering::SeqCst);
        conn.server().shutdown();
        Ok(())
    });
    let mut server = TcpServer::bind("127.0.0.1:0", stop_at_once).unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let _clients: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    server.serve_forever().unwrap();
    assert_eq!(handled.load(Ordering::SeqCst), 1);
    // The other clients are not lost: they wait for the next server.
    server.serve_forever().unwrap();
    assert_eq!(handled.load(Ordering::SeqCst), 2);
}

#[test]
fn sequential_drain_rejects_the_backlog_at_its_deadline() {
    let slow = handler_fn(|_: &mut Connection| {
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    });
    let mut server = TcpServer::bind("127.0.0.1:0", slow).unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let _clients: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    server.handle().drain(Duration::from_millis(200));
    let before = Instant::now();
    server.serve_forever().unwrap();
    assert!(
        before.elapsed() < Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
    let report = server.handle().drain_report().unwrap();
    assert!(report.refused > 10, "{report:?}");
    assert_eq!(
        report.finished + report.cancelled + report.refused,
        40,
        "{report:?}"
    );
}

#[test]
fn client_that_always_sends_does_not_delay_a_drain() {
    let sink = || {
        handler_fn(|conn: &mut Connection| {
            // A byte at a time: the next one is always there.
            let mut byte = [0];
            while conn.read(&mut byte)? > 0 {}
            Ok(())
        })
    };
    let sequential = TcpServer::bind("127.0.0.1:0", sink()).unwrap();
    let threading = ThreadingTcpServer::bind("127.0.0.1:0", sink()).unwrap();
    for (mut group, address) in [
        {
            let address = sequential.local_addr().as_inet().unwrap();
            (ServerGroup::new().with(sequential), address)
        },
        {
            let address = threading.local_addr().as_inet().unwrap();
            (ServerGroup::new().with(threading), address)
        },
    ] {
        let handle = group.handle();
        let serving = std::thread::spawn(move || group.serve_forever());
        let mut client = TcpStream::connect(address).unwrap();
        let flooding = std::thread::spawn(move || while client.write_all(&[0; 65_536]).is_ok() {});
        let own = &handle.handles()[0];
        eventually(TIMEOUT, "the client to be served", || {
            own.active_count() > 0
        });
        let before = Instant::now();
        handle.drain(Duration::from_millis(100));
        serving.join().unwrap().unwrap();
        assert!(
            before.elapsed() < Duration::from_millis(900),
            "{:?}",
            before.elapsed()
        );
        let report = own.drain_report().unwrap();
        assert_eq!((report.cancelled, report.abandoned), (1, 0), "{report:?}");
        assert!(report.elapsed >= Duration::from_millis(90), "{report:?}");
        flooding.join().unwrap();
    }
}

#[test]
fn writer_on_another_thread_does_not_delay_a_drain() {
    for _ in 0..5 {
        let handler = handler_fn(|conn: &mut Connection| {
            let mut writer = conn.writer();
            let writing = std::thread::spawn(move || {
                // More than the buffers hold, because the client does not read.
                let _ = writer.write_all(&vec![0; 64 << 20]);
            });
            let read = conn.read(&mut [0]);
            conn.shutdown(Shutdown::Both)?;
            writing.join().unwrap();
            read?;
            Ok(())
        });
        let mut server = TcpServer::bind("127.0.0.1:0", handler).unwrap();
        let address = server.local_addr().as_inet().unwrap();
        let handle = server.handle();
        let serving = std::thread::spawn(move || server.serve_forever());
        let client = TcpStream::connect(address).unwrap();
        wait_until_write_blocks(&handle);
        let before = Instant::now();
        handle.drain(Duration::from_millis(100));
        serving.join().unwrap().unwrap();
        assert!(
            before.elapsed() < Duration::from_secs(5),
            "{:?}",
            before.elapsed()
        );
        drop(client);
    }
}

#[test]
fn handle_request_loop_ends_when_a_handler_calls_shutdown() {
    let handler = handler_fn(|conn: &mut Connection| {
        conn.server().shutdown();
        Ok(())
    });
    let mut server = TcpServer::bind("127.0.0.1:0", handler).unwrap();
    let _client = TcpStream::connect(server.local_addr().as_inet().unwrap()).unwrap();
    let mut rounds = 0;
    while server.handle_request(Some(TIMEOUT)).unwrap() != RequestOutcome::Stopped {
        rounds += 1;
        assert!(rounds < 5);
    }
    assert_eq!(rounds, 1);
    // A shutdown between two calls.
    let _second = TcpStream::connect(server.local_addr().as_inet().unwrap()).unwrap();
    assert_eq!(
        server.handle_request(Some(TIMEOUT)).unwrap(),
        RequestOutcome::Request
    );
    assert_eq!(
        server.handle_request(Some(TIMEOUT)).unwrap(),
        RequestOutcome::Stopped
    );
}

#[test]
fn handle_request_with_zero_timeout_serves_a_queued_client() {
    let served = Arc::new(AtomicBool::new(false));
    let flag = served.clone();
    let handler = handler_fn(move |_: &mut Connection| {
        flag.store(true, Ordering::SeqCst);
        Ok(())
    });
    let mut server = TcpServer::bind("127.0.0.1:0", handler).unwrap();
    assert_eq!(
        server.handle_request(Some(Duration::ZERO)).unwrap(),
        RequestOutcome::TimedOut
    );
    let _client = TcpStream::connect(server.local_addr().as_inet().unwrap()).unwrap();
    assert_eq!(
        server.handle_request(Some(Duration::ZERO)).unwrap(),
        RequestOutcome::Request
    );
    assert!(served.load(Ordering::SeqCst));
}

#[test]
fn wait_before_serving_waits_for_the_drain() {
    let mut server =
        TcpServer::bind("127.0.0.1:0", handler_fn(|_: &mut Connection| Ok(()))).unwrap();
    let handle = server.handle();
    handle.drain(Duration::from_secs(1));
    let serving = std::thread::spawn(move || server.serve_forever());
    assert!(handle.wait(Some(TIMEOUT)));
    assert!(handle.drain_report().is_some());
    serving.join().unwrap().unwrap();
}

#[test]
fn forking_next_to_threads_is_rejected_before_serving() {
    let handler = || handler_fn(|_: &mut Connection| Ok(()));
    let mut group = ServerGroup::new()
        .with(socketserver::ForkingTcpServer::bind("127.0.0.1:0", handler()).unwrap())
        .with(ThreadingTcpServer::bind("127.0.0.1:0", handler()).unwrap());
    let error = group.serve_forever().unwrap_err();
    assert!(matches!(
        error,
        ServeError::ForkingBesideThreads { model: "threading" }
    ));
}

#[test]
fn long_reply_survives_a_client_that_sends_more() {
    let handler = handler_fn(|conn: &mut Connection| {
        conn.read_exact(&mut [0])?;
        Ok(conn.write_all(&vec![7; 2_000_000])?)
    });
    let mut server = ThreadingTcpServer::builder()
        .timeouts(Timeouts::default())
        .bind("127.0.0.1:0", handler)
        .unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let handle = server.handle();
    let serving = std::thread::spawn(move || server.serve_forever());
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.write_all(b"?").unwrap();
    wait_until_write_blocks(&handle);
    client.write_all(b"more").unwrap();
    let mut reply = Vec::new();
    client.read_to_end(&mut reply).unwrap();
    assert_eq!(reply.len(), 2_000_000);
    handle.shutdown();
    serving.join().unwrap().unwrap();
}
