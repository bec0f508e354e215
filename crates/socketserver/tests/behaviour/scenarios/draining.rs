//! Graceful shutdown: queued requests are served, active requests may finish, and the others are
//! cancelled at the deadline.

use crate::matrix::Combination;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

/// Expects the report of a drain, without its duration.
#[track_caller]
fn expect_report(server: &ServerDriver, expected: &str) {
    let report = server.expect_event("drained");
    assert!(
        report.starts_with(&format!("drained {expected} ms=")),
        "{report}, not {expected}"
    );
}

pub fn idle_server_drains_at_once(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default());
    server.assert_serves();
    server.assert_idle();
    server.drain(20_000);
    expect_report(
        &server,
        "queued=0 finished=0 rejected=0 cancelled=0 abandoned=0",
    );
    server.expect_event("served");
    server.wait_until_address_free();
    server.command("serve");
    let error = server.expect_event("serve-failed");
    assert!(error.contains("closed"), "{error}");
    server.assert_quits();
}

pub fn handler_can_drain_the_server(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    assert_eq!(server.client().ask("drain 20000"), "draining");
    server.expect_event("served");
    let report = server.expect_event("drained");
    assert!(
        report.contains("rejected=0 cancelled=0 abandoned=0"),
        "{report}"
    );
    server.wait_until_address_free();
    server.assert_quits();
}

pub fn drain_lets_active_requests_finish(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let held = server.hold("held");
    server.drain(20_000);
    if !cell.is_sequential() {
        server.expect_event("drain-started 1");
    }
    assert_eq!(server.count("drained"), 0);
    held.release();
    expect_report(
        &server,
        "queued=0 finished=1 rejected=0 cancelled=0 abandoned=0",
    );
    server.expect_event("ended 1 completed");
    server.assert_quits();
}

pub fn drain_closes_the_listener_at_once(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let held = server.hold("held");
    server.drain(20_000);
    server.wait_until_address_free();
    assert_eq!(server.count("drained"), 0);
    held.release();
    server.expect_event("served");
}

pub fn drain_serves_the_backlog(cell: Combination) {
    let mut server = ServerDriver::bind(cell, Options::default());
    let mut clients = [server.client(), server.client(), server.client()];
    for client in &mut clients {
        client.send_line("in the backlog").unwrap();
        client.half_close().unwrap();
    }
    server.drain(20_000);
    server.command("serve");
    for mut client in clients {
        server.expect_reply(&mut client, "in the backlog");
    }
    expect_report(
        &server,
        "queued=3 finished=3 rejected=0 cancelled=0 abandoned=0",
    );
    server.assert_quits();
}

pub fn drain_with_zero_timeout_rejects_the_backlog(cell: Combination) {
    let mut server = ServerDriver::bind(cell, Options::default());
    let mut clients = [server.client(), server.client(), server.client()];
    for client in &mut clients {
        client.send_line("too late").unwrap();
    }
    server.drain(0);
    server.command("serve");
    expect_report(
        &server,
        "queued=0 finished=0 rejected=3 cancelled=0 abandoned=0",
    );
    server.expect_events("rejected", 3);
    assert_eq!(server.count("factory"), 0);
    if !cell.is_datagram() {
        assert!(
            clients
                .into_iter()
                .all(crate::common::client::Client::was_closed_by_server)
        );
    }
    server.assert_quits();
}

pub fn drain_cancels_requests_at_its_deadline(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    if cell.is_datagram() {
        let _held = server.hold("held");
        server.drain(100);
        // A thread cannot be killed; a process can.
        let abandoned = usize::from(!cell.is_forking());
        let report = format!("queued=0 finished=0 rejected=0 cancelled=1 abandoned={abandoned}");
        expect_report(&server, &report);
        return server.assert_quits();
    }
    // The handler waits for its client, for minutes.
    let mut client = server.client();
    assert_eq!(client.ask("hello"), "hello");
    server.drain(100);
    assert!(client.was_closed_by_server());
    expect_report(
        &server,
        "queued=0 finished=0 rejected=0 cancelled=1 abandoned=0",
    );
    let reason = if cell.is_forking() {
        "killed by signal 26: cut by the server"
    } else {
        "cancelled"
    };
    server.expect_event(&format!("ended 1 {reason}"));
    let took = server.expect_event("drained");
    let took: u32 = took.rsplit_once('=').unwrap().1.parse().unwrap();
    assert!(took >= 99, "after {took} ms");
    assert_eq!(
        server.count("handle_error"),
        0,
        "cancellation is not a handler error"
    );
    server.assert_quits();
}

pub fn close_drains_the_backlog(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default());
    server.assert_serves();
    server.wait_for_requests();
    server.stop();
    server.expect_event("served");
    let mut client = server.client();
    client.send_line("last one").unwrap();
    client.half_close().unwrap();
    server.command("close");
    server.expect_reply(&mut client, "last one");
    let report = server.expect_event("closed");
    assert!(
        report.contains("queued: 1, finished: 1, refused: 0, cancelled: 0"),
        "{report}"
    );
    server.wait_until_address_free();
    server.assert_quits();
}

pub fn close_abandons_a_stuck_handler_at_its_timeout(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default().with("block_on_close", 50));
    let _held = server.hold("held");
    server.stop();
    server.expect_event("served");
    server.command("close");
    let report = server.expect_event("closed");
    let abandoned = usize::from(!cell.is_forking());
    assert!(
        report.contains(&format!("cancelled: 1, abandoned: {abandoned}")),
        "{report}"
    );
    server.assert_quits();
}
