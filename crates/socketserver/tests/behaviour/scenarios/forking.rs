//! Properties of servers with children only.

use std::os::unix::fs::MetadataExt;

use rustix::process::Signal;

use crate::common::process::{open_files, stat_field};
use crate::matrix::Combination;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

/// Fields of `/proc/PID/stat`, by their numbers in proc(5).
const STATE: usize = 3;
const EXIT_CODE: usize = 52;

/// The codes are read while the server is stopped and cannot reap the child.
pub fn exit_codes_are_0_and_1(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    for (name, faults, wait_status) in [("good", [""], 0), ("bad", ["finish error"], 1 << 8)] {
        let held = server.hold(name);
        let child = server.child();
        server.kill(server.pid(), Signal::STOP);
        let stopped = || stat_field(server.pid(), STATE).as_deref() == Some("T");
        server.wait_for("the server to stop", stopped);
        server.set_faults_now(&faults);
        held.release();
        let gone = || stat_field(child, STATE).as_deref() == Some("Z");
        server.wait_for("the child to exit", gone);
        assert_eq!(stat_field(child, EXIT_CODE), Some(wait_status.to_string()));
        server.kill(server.pid(), Signal::CONT);
        server.assert_idle();
        server.set_faults(&[]);
    }
    server.expect_event("ended 1 completed");
    server.expect_event("ended 2 failed");
}

pub fn foreign_child_stays_waitable(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default().set("foreign_child"));
    let foreign = server.child();
    for _ in 0..5 {
        server.assert_serves();
    }
    server.wait_for_requests();
    server.wait_for("its own children to be reaped", || {
        server.children() == [foreign]
    });
    server.stop();
    server.expect_event("served");
    server.command("collect");
    server.expect_event("collected 7");
    server.assert_quits();
}

pub fn child_holds_no_descriptor_of_its_parent(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let listener = server
        .expect_event("listener")
        .split_once(' ')
        .unwrap()
        .1
        .to_owned();
    let file = || {
        server
            .path()
            .map(|path| std::fs::symlink_metadata(path).unwrap().ino())
    };
    let before = file();

    let first = server.hold("first");
    let older = server.children();
    let second = server.hold("second");
    let younger = server
        .children()
        .into_iter()
        .find(|child| !older.contains(child))
        .unwrap();

    let has = |pid, what: &str| open_files(pid).iter().any(|file| file.contains(what));
    for what in ["eventpoll", "pidfd"] {
        assert!(has(server.pid(), what), "{:?}", open_files(server.pid()));
        assert!(!has(younger, what), "{what}: {:?}", open_files(younger));
    }
    assert!(has(server.pid(), &listener));
    // The reply to a datagram uses the socket that received it.
    assert_eq!(
        has(younger, &listener),
        cell.is_datagram(),
        "{:?}",
        open_files(younger)
    );

    first.release();
    second.release();
    server.assert_idle();
    assert_eq!(file(), before, "only the parent removes the socket file");
    server.assert_serves();
}

pub fn killed_child_ends_only_its_request(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let held = server.hold("doomed");
    let child = server.child();
    let other = server.hold("spared");
    server.kill(child, Signal::KILL);
    server.expect_event("ended 1 killed by signal 9");
    if !cell.is_datagram() {
        assert!(held.client.was_closed_by_server());
    }
    other.release();
    assert!(server.path().is_none_or(std::path::Path::exists));
    server.assert_serves();
    server.assert_idle();
}

pub fn children_ignore_signals_to_the_process_group(cell: Combination) {
    // Service managers and terminals signal the whole group: the parent handles the signal, and its
    // children finish.
    let server = ServerDriver::start(cell, Options::default());
    let held = server.hold("served");
    let child = server.child();
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        server.kill(child, signal);
    }
    server.drain(20_000);
    held.release();
    let report = server.expect_event("drained");
    assert!(
        report.contains("finished=1 rejected=0 cancelled=0"),
        "{report}"
    );
    server.assert_quits();
}

pub fn children_that_ignore_cancellation_are_killed(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let _held = server.hold_with("hold-without-cancel", "held");
    server.drain(100);
    let report = server.expect_event("drained");
    assert!(report.contains("cancelled=1 abandoned=0"), "{report}");
    server.expect_event("ended 1 killed by signal 9");
    server.assert_quits();
}

pub fn serving_with_other_threads_is_rejected(cell: Combination) {
    let mut server = ServerDriver::bind(cell, Options::default().set("second_thread"));
    server.command("serve");
    let error = server.expect_event("serve-failed");
    assert!(error.contains("the process has 2 threads"), "{error}");
    assert_eq!(server.children(), [0; 0]);
}

pub fn children_end_with_their_server(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default());
    let _held = server.hold("held");
    let child = server.child();
    server.kill_server();
    // There may be no process that reaps it.
    server.wait_for("the child to end", || {
        stat_field(child, STATE).is_none_or(|state| state == "Z")
    });
}
