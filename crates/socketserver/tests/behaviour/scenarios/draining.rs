//! Graceful ends: what waits is served, what is served may finish, and what does not is cut.

use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

/// What a drain reports, but for its duration.
#[track_caller]
fn reports(serving: &Serving, expected: &str) {
    let report = serving.tells("drained");
    assert!(
        report.starts_with(&format!("drained {expected} ms=")),
        "{report}, not {expected}"
    );
}

pub fn an_idle_server_drains(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default());
    serving.serves();
    serving.is_idle();
    serving.drain(20_000);
    reports(&serving, "queued=0 finished=0 refused=0 cut=0 abandoned=0");
    serving.tells("served");
    serving.frees_its_address();
    serving.tell("serve");
    let refused = serving.tells("refused-to-serve");
    assert!(refused.contains("closed"), "{refused}");
    serving.quits();
}

pub fn a_drain_from_a_handler(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    assert_eq!(serving.client().ask("drain 20000"), "draining");
    serving.tells("served");
    let report = serving.tells("drained");
    assert!(report.contains("refused=0 cut=0 abandoned=0"), "{report}");
    serving.frees_its_address();
    serving.quits();
}

pub fn a_drain_lets_live_requests_finish(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let held = serving.hold("gate");
    serving.drain(20_000);
    if !cell.is_sequential() {
        serving.tells("drain-started 1");
    }
    assert_eq!(serving.count("drained"), 0);
    held.release();
    reports(&serving, "queued=0 finished=1 refused=0 cut=0 abandoned=0");
    serving.tells("ended 1 completed");
    serving.quits();
}

pub fn a_drain_refuses_new_clients(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let held = serving.hold("gate");
    serving.drain(20_000);
    serving.frees_its_address();
    assert_eq!(serving.count("drained"), 0);
    held.release();
    serving.tells("served");
}

pub fn a_drain_serves_the_backlog(cell: Combination) {
    let mut serving = Serving::bound(cell, Options::default());
    let mut clients = [serving.client(), serving.client(), serving.client()];
    for client in &mut clients {
        client.say("before it is too late").unwrap();
        client.half_close().unwrap();
    }
    serving.drain(20_000);
    serving.tell("serve");
    for mut client in clients {
        serving.answers(&mut client, "before it is too late");
    }
    reports(&serving, "queued=3 finished=3 refused=0 cut=0 abandoned=0");
    serving.quits();
}

pub fn a_drain_without_time_refuses_the_backlog(cell: Combination) {
    let mut serving = Serving::bound(cell, Options::default());
    let mut clients = [serving.client(), serving.client(), serving.client()];
    for client in &mut clients {
        client.say("too late").unwrap();
    }
    serving.drain(0);
    serving.tell("serve");
    reports(&serving, "queued=0 finished=0 refused=3 cut=0 abandoned=0");
    serving.tells_times("refused", 3);
    assert_eq!(serving.count("factory"), 0);
    if !cell.is_datagram() {
        assert!(
            clients
                .into_iter()
                .all(crate::common::client::Client::was_cut)
        );
    }
    serving.quits();
}

pub fn a_drain_cuts_at_its_deadline(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    if cell.is_datagram() {
        let _held = serving.hold("gate");
        serving.drain(100);
        // A thread cannot be ended; a process can.
        let abandoned = usize::from(!cell.is_forking());
        let figures = format!("queued=0 finished=0 refused=0 cut=1 abandoned={abandoned}");
        reports(&serving, &figures);
        return serving.quits();
    }
    // It waits for its client, and would for minutes.
    let mut client = serving.client();
    assert_eq!(client.ask("hello"), "hello");
    serving.drain(100);
    assert!(client.was_cut());
    reports(&serving, "queued=0 finished=0 refused=0 cut=1 abandoned=0");
    let reason = if cell.is_forking() {
        "killed by signal 26: cut by the server"
    } else {
        "cancelled"
    };
    serving.tells(&format!("ended 1 {reason}"));
    let took = serving.tells("drained");
    let took: u32 = took.rsplit_once('=').unwrap().1.parse().unwrap();
    assert!(took >= 99, "after {took} ms");
    assert_eq!(
        serving.count("handle_error"),
        0,
        "to be cut is no fault of the handler"
    );
    serving.quits();
}

pub fn a_close_is_a_drain(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default());
    serving.serves();
    serving.rests();
    serving.stop();
    serving.tells("served");
    let mut client = serving.client();
    client.say("last one").unwrap();
    client.half_close().unwrap();
    serving.tell("close");
    serving.answers(&mut client, "last one");
    let report = serving.tells("closed");
    assert!(
        report.contains("queued: 1, finished: 1, refused: 0, cancelled: 0"),
        "{report}"
    );
    serving.frees_its_address();
    serving.quits();
}

pub fn a_close_leaves_a_stuck_handler_behind(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default().with("block_on_close", 50));
    let _held = serving.hold("gate");
    serving.stop();
    serving.tells("served");
    serving.tell("close");
    let report = serving.tells("closed");
    let abandoned = usize::from(!cell.is_forking());
    assert!(
        report.contains(&format!("cancelled: 1, abandoned: {abandoned}")),
        "{report}"
    );
    serving.quits();
}
