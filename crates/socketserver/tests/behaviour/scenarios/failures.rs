//! Errors and panics of a handler: each ends its own request only.

use crate::matrix::Combination;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

/// A factory and a destructor cannot return an error.
const FAILURES: [(&str, &str); 8] = [
    ("factory", "panic"),
    ("setup", "error"),
    ("setup", "panic"),
    ("handle", "error"),
    ("handle", "panic"),
    ("finish", "error"),
    ("finish", "panic"),
    ("drop", "panic"),
];

pub fn handler_failure_ends_only_its_request(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let mut id = 1;
    for (phase, kind) in FAILURES {
        server.set_faults(&[&format!("{phase} {kind}")]);
        let mut client = server.client();
        let _ = client.send_line("hello");
        // The server may have closed the connection already.
        let _ = client.half_close();
        let was_handled = matches!(phase, "finish" | "drop");
        if was_handled && !cell.is_datagram() {
            assert_eq!(client.read_rest().unwrap(), b"hello\n", "{phase} {kind}");
        } else if !cell.is_datagram() {
            assert!(client.was_closed_by_server(), "{phase} {kind}");
        }
        let reason = match kind {
            _ if cell.is_forking() => "failed",
            "panic" => "panicked",
            _ => "failed",
        };
        server.expect_event(&format!("ended {id} {reason}"));

        let event = server.expect_event(&format!("handle_error {id}"));
        assert!(
            event.starts_with(&format!("handle_error {id} {phase} {kind}")),
            "{event}"
        );
        let reached = |phase: &str| server.count(&format!("{phase} {id}"));
        let setup_succeeded = usize::from(!matches!(phase, "factory" | "setup"));
        assert_eq!(
            reached("setup"),
            usize::from(phase != "factory"),
            "{phase} {kind}"
        );
        assert_eq!(reached("handle"), setup_succeeded, "{phase} {kind}");
        assert_eq!(reached("finish"), setup_succeeded, "{phase} {kind}");

        server.set_faults(&[]);
        server.assert_serves();
        id += 2;
    }
    server.assert_idle();
    assert_eq!(
        server.count("handle_error"),
        FAILURES.len(),
        "{}",
        server.journal()
    );
}

pub fn second_failure_is_reported_but_not_handled(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    server.set_faults(&["handle error", "finish panic", "drop panic"]);
    let _ = server.client().send_line("hello");
    server.expect_event("ended 1");
    let event = server.expect_event("handle_error");
    assert!(event.starts_with("handle_error 1 handle error"), "{event}");
    server.expect_event("hook finish panicked: asked to panic in finish");
    assert_eq!(server.count("hook drop"), 1, "{}", server.journal());
    server.set_faults(&[]);
    server.assert_serves();
}
