//! What the application adds to a server: verification, periodic work, and `handle_request`.

use std::time::{Duration, Instant};

use crate::common::PATIENCE;
use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

pub fn who_is_not_verified_gets_no_handler(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    serving.serves();
    let descriptors = serving.is_idle();
    for (round, how) in ["refuse", "error", "panic"].into_iter().enumerate() {
        let id = 2 * round + 2;
        serving.faults(&[&format!("verify_request {how}")]);
        let mut client = serving.client();
        let _ = client.say("let me in");
        serving.tells(&format!("refused {id} not verified"));
        assert_eq!(serving.count("hook verify_request"), round);
        for never in ["dispatched", "started", "setup", "ended"] {
            assert_eq!(
                serving.count(&format!("{never} {id}")),
                0,
                "{}",
                serving.journal()
            );
        }
        if cell.is_datagram() {
            serving.faults(&[]);
            // Had the first one been answered, that answer would come first.
            assert_eq!(client.ask("now?"), "now?");
        } else {
            assert!(client.was_cut());
            serving.faults(&[]);
            serving.serves();
        }
    }
    serving.is_idle();
    serving.waits_for("what was refused to be closed", || {
        serving.is_idle() == descriptors
    });
    assert_eq!(serving.count("factory"), 4, "{}", serving.journal());
}

pub fn hooks_that_fail_do_no_harm(cell: Combination) {
    let serving = Serving::start(cell, Options::default().with("service_actions", 10));
    for (round, kind) in ["error", "panic"].into_iter().enumerate() {
        serving.faults(&[&format!("handle_error {kind}")]);
        serving.client().say("fail").unwrap();
        serving.waits_for("the failure of handle_error to be told", || {
            serving.count("hook handle_error") == round + 1
        });
        serving.faults(&[&format!("service_actions {kind}")]);
        let before = serving.count("hook service_actions");
        serving.waits_for("service_actions to fail, and to be called again", || {
            serving.count("hook service_actions") >= before + 3
        });
        serving.serves();
        serving.faults(&[&format!("on_event {kind}")]);
        serving.serves();
        serving.faults(&[]);
        serving.serves();
    }
    assert!(serving.count("panicked") >= 3, "{}", serving.journal());
    // An observer's own failure cannot be told to the observer.
    assert_eq!(serving.count("hook on_event"), 0);
}

pub fn service_actions_run_between_requests(cell: Combination) {
    const INTERVAL: Duration = Duration::from_millis(20);
    let serving = Serving::start(cell, Options::default().with("service_actions", 20));
    let called = || serving.count("service_actions");
    serving.waits_for("a first call", || called() > 0);
    for _ in 0..2 {
        serving.serves();
        let (before, since) = (called(), Instant::now());
        serving.waits_for("five calls", || called() >= before + 5);
        // The first of them may have been due; from there on they are an interval apart.
        assert!(since.elapsed() >= 4 * INTERVAL, "{:?}", since.elapsed());
    }
}

pub fn handle_request_handles_one(cell: Combination) {
    let mut serving = Serving::bound(cell, Options::default().with("service_actions", 1));
    let mut clients = [serving.client(), serving.client()];
    for (n, client) in clients.iter_mut().enumerate() {
        client.say(&format!("client {n}")).unwrap();
        client.half_close().unwrap();
    }
    for (n, mut client) in clients.into_iter().enumerate() {
        serving.tell("handle 20000");
        serving.tells_times("handled Request", n + 1);
        assert_eq!(serving.count("accepted"), n + 1, "{}", serving.journal());
        assert_eq!(client.hear().unwrap(), Some(format!("client {n}")));
    }
    assert_eq!(serving.count("service_actions"), 0);
}

pub fn handle_request_times_out(cell: Combination) {
    let mut serving = Serving::bound(cell, Options::default().with("service_actions", 1));
    for (round, fault) in ["", "handle_timeout error", "handle_timeout panic"]
        .iter()
        .enumerate()
    {
        serving.faults(&[fault]);
        let asked = Instant::now();
        serving.tell("handle 30");
        serving.tells_times("handled TimedOut", round + 1);
        assert!(asked.elapsed() >= Duration::from_millis(30));
        assert!(asked.elapsed() < PATIENCE);
        assert_eq!(serving.count("handle_timeout"), round + 1);
        assert_eq!(serving.count("hook handle_timeout"), round);
    }
    assert_eq!(serving.count("service_actions"), 0);
    serving.tell("serve");
    serving.serves();
}

pub fn handle_request_is_stopped(cell: Combination) {
    let mut serving = Serving::bound(cell, Options::default());
    // The second line is read by the watch, and so while the first one is being obeyed.
    serving.tell("handle forever\nshutdown");
    serving.tells("handled Stopped");
    serving.tell("handle forever\ndrain 1000");
    serving.tells_times("handled Stopped", 2);
    serving.tells("drained");
    serving.tell("serve");
    let refused = serving.tells("refused-to-serve");
    assert!(refused.contains("closed"), "{refused}");
    assert_eq!(serving.count("handle_timeout"), 0);
}
