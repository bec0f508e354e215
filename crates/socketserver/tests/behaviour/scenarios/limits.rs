//! The maximum number of requests that the model allows, and one more.

use std::time::Duration;

use crate::matrix::Combination;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

pub fn next_request_waits_at_the_limit(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default().with("limit", 2));
    let mut held = vec![server.hold("a")];
    if !cell.is_sequential() {
        held.push(server.hold("b"));
    }
    let next = held.len() + 1;
    let mut waiting = server.client();
    waiting.send_line("next").unwrap();
    let mut one_more = server.client();
    one_more.send_line("one more").unwrap();
    // Both clients are served in the slot that this releases.
    held.remove(0).release();
    server.expect_reply(&mut waiting, "next");
    drop(waiting);
    server.expect_reply(&mut one_more, "one more");
    let [first, second] = [
        server.position("ended 1"),
        server.position(&format!("ended {next}")),
    ];
    assert!(
        first < server.position(&format!("accepted {next}")),
        "{}",
        server.journal()
    );
    assert!(
        second < server.position(&format!("accepted {}", next + 1)),
        "{}",
        server.journal()
    );
    assert_eq!(server.count("rejected"), 0);
}

pub fn next_request_is_rejected_at_the_limit(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default().with("limit", 1).set("reject"));
    let held = server.hold("held");
    let mut rejected = server.client();
    let _ = rejected.send_line("hello");
    server.expect_event("rejected 2 at the limit");
    if !cell.is_datagram() {
        assert!(rejected.was_closed_by_server());
    }
    assert_eq!(server.count("factory"), 1);
    held.release();
    server.wait_for("the slot to be free again", || {
        let mut client = server.client();
        client.set_timeout(Duration::from_millis(200)).unwrap();
        client.send_line("again").is_ok()
            && matches!(client.receive_line(), Ok(Some(answer)) if answer == "again")
    });
}

pub fn server_stops_at_the_limit(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default().with("limit", 1));
    let held = server.hold("held");
    let mut waiting = server.client();
    waiting.send_line("next").unwrap();
    server.stop();
    server.expect_event("served");
    assert_eq!(server.count("accepted"), 1);
    server.command("serve");
    held.release();
    server.expect_reply(&mut waiting, "next");
}
