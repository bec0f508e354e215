//! Hooks of the application: verification, periodic work, and `handle_request`.

use std::time::{Duration, Instant};

use crate::common::TIMEOUT;
use crate::matrix::Combination;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

pub fn rejected_client_gets_no_handler(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    server.assert_serves();
    let descriptors = server.assert_idle();
    for (round, outcome) in ["reject", "error", "panic"].into_iter().enumerate() {
        let id = 2 * round + 2;
        server.set_faults(&[&format!("verify_request {outcome}")]);
        let mut client = server.client();
        let _ = client.send_line("hello");
        server.expect_event(&format!("rejected {id} not verified"));
        assert_eq!(server.count("hook verify_request"), round);
        for never in ["dispatched", "started", "setup", "ended"] {
            assert_eq!(
                server.count(&format!("{never} {id}")),
                0,
                "{}",
                server.journal()
            );
        }
        if cell.is_datagram() {
            server.set_faults(&[]);
            // A reply to the first datagram would arrive first.
            assert_eq!(client.ask("now?"), "now?");
        } else {
            assert!(client.was_closed_by_server());
            server.set_faults(&[]);
            server.assert_serves();
        }
    }
    server.assert_idle();
    server.wait_for("the rejected clients to be closed", || {
        server.assert_idle() == descriptors
    });
    assert_eq!(server.count("factory"), 4, "{}", server.journal());
}

pub fn failing_hooks_do_not_stop_the_server(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default().with("service_actions", 10));
    for (round, kind) in ["error", "panic"].into_iter().enumerate() {
        server.set_faults(&[&format!("handle_error {kind}")]);
        server.client().send_line("fail").unwrap();
        server.wait_for("the failure of handle_error to be reported", || {
            server.count("hook handle_error") == round + 1
        });
        server.set_faults(&[&format!("service_actions {kind}")]);
        let before = server.count("hook service_actions");
        server.wait_for("service_actions to fail, and to be called again", || {
            server.count("hook service_actions") >= before + 3
        });
        server.assert_serves();
        server.set_faults(&[&format!("on_event {kind}")]);
        server.assert_serves();
        server.set_faults(&[]);
        server.assert_serves();
    }
    assert!(server.count("panicked") >= 3, "{}", server.journal());
    // A failure of `on_event` is not reported to `on_event`.
    assert_eq!(server.count("hook on_event"), 0);
}

pub fn service_actions_run_between_requests(cell: Combination) {
    const INTERVAL: Duration = Duration::from_millis(20);
    let server = ServerDriver::start(cell, Options::default().with("service_actions", 20));
    let called = || server.count("service_actions");
    server.wait_for("a first call", || called() > 0);
    for _ in 0..2 {
        server.assert_serves();
        let (before, since) = (called(), Instant::now());
        server.wait_for("five calls", || called() >= before + 5);
        // The first call may be due already; further calls are one interval apart.
        assert!(since.elapsed() >= 4 * INTERVAL, "{:?}", since.elapsed());
    }
}

pub fn handle_request_serves_one_request(cell: Combination) {
    let mut server = ServerDriver::bind(cell, Options::default().with("service_actions", 1));
    let mut clients = [server.client(), server.client()];
    for (n, client) in clients.iter_mut().enumerate() {
        client.send_line(&format!("client {n}")).unwrap();
        client.half_close().unwrap();
    }
    for (n, mut client) in clients.into_iter().enumerate() {
        server.command("handle 20000");
        server.expect_events("handled Request", n + 1);
        assert_eq!(server.count("accepted"), n + 1, "{}", server.journal());
        assert_eq!(client.receive_line().unwrap(), Some(format!("client {n}")));
    }
    assert_eq!(server.count("service_actions"), 0);
}

pub fn handle_request_times_out(cell: Combination) {
    let mut server = ServerDriver::bind(cell, Options::default().with("service_actions", 1));
    for (round, fault) in ["", "handle_timeout error", "handle_timeout panic"]
        .iter()
        .enumerate()
    {
        server.set_faults(&[fault]);
        let start = Instant::now();
        server.command("handle 30");
        server.expect_events("handled TimedOut", round + 1);
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(start.elapsed() < TIMEOUT);
        assert_eq!(server.count("handle_timeout"), round + 1);
        assert_eq!(server.count("hook handle_timeout"), round);
    }
    assert_eq!(server.count("service_actions"), 0);
    server.command("serve");
    server.assert_serves();
}

pub fn handle_request_returns_on_shutdown_and_drain(cell: Combination) {
    let mut server = ServerDriver::bind(cell, Options::default());
    // The watch reads the second line while the first command runs.
    server.command("handle forever\nshutdown");
    server.expect_event("handled Stopped");
    server.command("handle forever\ndrain 1000");
    server.expect_events("handled Stopped", 2);
    server.expect_event("drained");
    server.command("serve");
    let error = server.expect_event("serve-failed");
    assert!(error.contains("closed"), "{error}");
    assert_eq!(server.count("handle_timeout"), 0);
}
