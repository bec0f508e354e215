//! Peers that make a handler wait. Every kind of wait has a timeout.

use std::thread;
use std::time::{Duration, Instant};

use crate::common::TIMEOUT;
use crate::matrix::Combination;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

/// Expects that the first request ends because a wait timed out, and that its handler passed the
/// error on.
#[track_caller]
fn expect_timeout(server: &ServerDriver) {
    // The exit code of a child does not contain the reason.
    let reason = if server.cell.is_forking() {
        "failed"
    } else {
        "timed out"
    };
    server.expect_event(&format!("ended 1 {reason}"));
    let event = server.expect_event("handle_error");
    assert!(
        event.contains("1 handle error") && event.contains("past the timeout"),
        "{event}"
    );
}

pub fn slow_request_ends_at_the_request_timeout(cell: Combination) {
    const LIMIT: Duration = Duration::from_millis(300);
    let server = ServerDriver::start(
        cell,
        Options::default().with("request", 300).with("idle", 200),
    );
    let start = Instant::now();
    let mut client = server.client();
    while server.count("ended") == 0 && start.elapsed() < TIMEOUT {
        // The write after the timeout fails.
        let _ = client.send(b"x");
        thread::sleep(Duration::from_millis(50));
    }
    let took = start.elapsed();
    assert!(
        took >= LIMIT && took < TIMEOUT,
        "{took:?}\n{}",
        server.journal()
    );
    expect_timeout(&server);
    server.assert_serves();
}

pub fn silent_peer_ends_at_the_read_and_idle_timeouts(cell: Combination) {
    for limit in ["read", "idle"] {
        let server = ServerDriver::start(cell, Options::default().with(limit, 100));
        let mut client = server.client();
        // The server's clock starts with its reply, which may be delayed.
        let since = Instant::now();
        assert_eq!(client.ask("hello"), "hello");
        assert!(client.was_closed_by_server());
        let waited = since.elapsed();
        assert!(waited >= Duration::from_millis(100), "{limit}: {waited:?}");
        expect_timeout(&server);
        server.assert_serves();
    }
}

pub fn peer_that_does_not_read_ends_at_the_write_timeout(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default().with("write", 150));
    let mut client = server.client();
    client.send_line("pour 67108864").unwrap();
    expect_timeout(&server);
    server.assert_serves();
}
