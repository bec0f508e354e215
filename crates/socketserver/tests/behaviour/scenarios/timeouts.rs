//! Peers that make a handler wait: each kind of wait has an end.

use std::thread;
use std::time::{Duration, Instant};

use crate::common::PATIENCE;
use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

/// The first request is over because a wait was; its handler passed the error on.
#[track_caller]
fn times_out(serving: &Serving) {
    // A child's end is known by its exit code alone.
    let reason = if serving.cell.is_forking() {
        "failed"
    } else {
        "timed out"
    };
    serving.tells(&format!("ended 1 {reason}"));
    let hooked = serving.tells("handle_error");
    assert!(
        hooked.contains("1 handle error") && hooked.contains("past the timeout"),
        "{hooked}"
    );
}

pub fn a_trickle_is_cut_by_the_request_deadline(cell: Combination) {
    const LIMIT: Duration = Duration::from_millis(300);
    let serving = Serving::start(
        cell,
        Options::default().with("request", 300).with("idle", 200),
    );
    let start = Instant::now();
    let mut client = serving.client();
    while serving.count("ended") == 0 && start.elapsed() < PATIENCE {
        // The end is met by the write that comes after it.
        let _ = client.send(b"x");
        thread::sleep(Duration::from_millis(50));
    }
    let took = start.elapsed();
    assert!(
        took >= LIMIT && took < PATIENCE,
        "{took:?}\n{}",
        serving.journal()
    );
    times_out(&serving);
    serving.serves();
}

pub fn silence_is_cut_by_the_read_and_idle_timeouts(cell: Combination) {
    for limit in ["read", "idle"] {
        let serving = Serving::start(cell, Options::default().with(limit, 100));
        let mut client = serving.client();
        // The server's clock starts with its answer, which may be long in coming.
        let since = Instant::now();
        assert_eq!(client.ask("hello"), "hello");
        assert!(client.was_cut());
        let waited = since.elapsed();
        assert!(waited >= Duration::from_millis(100), "{limit}: {waited:?}");
        times_out(&serving);
        serving.serves();
    }
}

pub fn a_peer_that_does_not_read_is_cut_by_the_write_timeout(cell: Combination) {
    let serving = Serving::start(cell, Options::default().with("write", 150));
    let mut client = serving.client();
    client.say("pour 67108864").unwrap();
    times_out(&serving);
    serving.serves();
}
