//! Stop: from outside and from a handler, early, twice, with and without active requests.

use crate::matrix::Combination;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

pub fn idle_server_stops_and_serves_again(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default());
    server.assert_serves();
    server.wait_for_requests();
    for round in 1..=2 {
        server.stop();
        server.expect_events("served", round);
        // A stop of a server that does not serve must not end its next round.
        server.stop();
        let mut early = server.client();
        early.send_line("early client").unwrap();
        server.command("serve");
        server.expect_reply(&mut early, "early client");
        drop(early);
        server.assert_serves();
        server.wait_for_requests();
    }
    assert_eq!(server.count("served"), 2);
    server.command("shutdown");
    server.expect_events("served", 3);
    server.assert_quits();
}

pub fn shutdown_before_serving_ends_the_first_round(cell: Combination) {
    let mut server = ServerDriver::bind(cell, Options::default().set("stop_first"));
    server.command("serve");
    server.expect_event("served");
    server.command("serve");
    server.assert_serves();
    assert_eq!(server.count("served"), 1);
}

pub fn handler_can_stop_the_server(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default());
    for round in 1..=2 {
        assert_eq!(server.client().ask("stop"), "stopping");
        server.expect_events("served", round);
        server.command("serve");
        server.assert_serves();
        server.wait_for_requests();
    }
}

pub fn shutdown_does_not_end_active_requests(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default());
    let (one, two) = (server.hold("one"), server.hold("two"));
    server.stop();
    server.expect_event("served");
    assert_eq!(server.count("ended"), 0);
    one.release();
    server.command("serve");
    server.assert_serves();
    two.release();
    server.assert_idle();
    assert_eq!(server.count("handle_error"), 0, "{}", server.journal());
}

pub fn drop_does_not_wait_for_active_requests(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default());
    let held = server.hold("held");
    server.stop();
    server.expect_event("served");
    server.command("drop");
    server.expect_event("dropped");
    if cell.transport == "udp" {
        // The socket stays open for the reply.
        held.release();
        return server.wait_until_address_free();
    }
    server.wait_until_address_free();
    assert_eq!(server.count("closing"), 0, "{}", server.journal());
    held.release();
}

pub fn server_that_never_served_closes(cell: Combination) {
    for (command, done) in [("close", "closed"), ("drop", "dropped")] {
        let mut server = ServerDriver::bind(cell, Options::default());
        server.command(command);
        server.expect_event(done);
        server.wait_until_address_free();
        server.assert_quits();
    }
}
