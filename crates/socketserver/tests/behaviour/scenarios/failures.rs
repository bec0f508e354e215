//! Errors and panics of a handler: each ends its request, and nothing else.

use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

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

pub fn a_failure_stays_with_its_request(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let mut id = 1;
    for (stage, kind) in FAILURES {
        serving.faults(&[&format!("{stage} {kind}")]);
        let mut client = serving.client();
        let _ = client.say("hello");
        // The server may be done with it already.
        let _ = client.half_close();
        let was_handled = matches!(stage, "finish" | "drop");
        if was_handled && !cell.is_datagram() {
            assert_eq!(client.rest().unwrap(), b"hello\n", "{stage} {kind}");
        } else if !cell.is_datagram() {
            assert!(client.was_cut(), "{stage} {kind}");
        }
        let reason = match kind {
            _ if cell.is_forking() => "failed",
            "panic" => "panicked",
            _ => "failed",
        };
        serving.tells(&format!("ended {id} {reason}"));

        let hooked = serving.tells(&format!("handle_error {id}"));
        assert!(
            hooked.starts_with(&format!("handle_error {id} {stage} {kind}")),
            "{hooked}"
        );
        let reached = |stage: &str| serving.count(&format!("{stage} {id}"));
        let is_set_up = usize::from(!matches!(stage, "factory" | "setup"));
        assert_eq!(
            reached("setup"),
            usize::from(stage != "factory"),
            "{stage} {kind}"
        );
        assert_eq!(reached("handle"), is_set_up, "{stage} {kind}");
        assert_eq!(reached("finish"), is_set_up, "{stage} {kind}");

        serving.faults(&[]);
        serving.serves();
        id += 2;
    }
    serving.is_idle();
    assert_eq!(
        serving.count("handle_error"),
        FAILURES.len(),
        "{}",
        serving.journal()
    );
}

pub fn a_second_failure_is_told_and_not_handled(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    serving.faults(&["handle error", "finish panic", "drop panic"]);
    let _ = serving.client().say("hello");
    serving.tells("ended 1");
    let hooked = serving.tells("handle_error");
    assert!(
        hooked.starts_with("handle_error 1 handle error"),
        "{hooked}"
    );
    serving.tells("hook finish panicked: told to panic in finish");
    assert_eq!(serving.count("hook drop"), 1, "{}", serving.journal());
    serving.faults(&[]);
    serving.serves();
}
