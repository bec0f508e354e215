//! What only a server with children can get wrong.

use std::os::unix::fs::MetadataExt;

use rustix::process::Signal;

use crate::common::process::{open_files, stat_field};
use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

/// Fields of `/proc/PID/stat`, by their numbers in proc(5).
const STATE: usize = 3;
const EXIT_CODE: usize = 52;

/// The codes are read while the server is stopped and cannot collect the child.
pub fn exit_codes_are_0_and_1(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    for (gate, faults, wait_status) in [("good", [""], 0), ("bad", ["finish error"], 1 << 8)] {
        let held = serving.hold(gate);
        let child = serving.child();
        serving.kill(serving.pid(), Signal::STOP);
        let stopped = || stat_field(serving.pid(), STATE).as_deref() == Some("T");
        serving.waits_for("the server to stand still", stopped);
        serving.faults_now(&faults);
        held.release();
        let gone = || stat_field(child, STATE).as_deref() == Some("Z");
        serving.waits_for("the child to exit", gone);
        assert_eq!(stat_field(child, EXIT_CODE), Some(wait_status.to_string()));
        serving.kill(serving.pid(), Signal::CONT);
        serving.is_idle();
        serving.faults(&[]);
    }
    serving.tells("ended 1 completed");
    serving.tells("ended 2 failed");
}

pub fn a_foreign_child_stays_waitable(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default().set("foreign_child"));
    let foreign = serving.child();
    for _ in 0..5 {
        serving.serves();
    }
    serving.rests();
    serving.waits_for("its own children to be collected", || {
        serving.children() == [foreign]
    });
    serving.stop();
    serving.tells("served");
    serving.tell("collect");
    serving.tells("collected 7");
    serving.quits();
}

pub fn a_child_owns_nothing_of_its_parent(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let listener = serving
        .tells("listener")
        .split_once(' ')
        .unwrap()
        .1
        .to_owned();
    let file = || {
        serving
            .path()
            .map(|path| std::fs::symlink_metadata(path).unwrap().ino())
    };
    let before = file();

    let first = serving.hold("first");
    let older = serving.children();
    let second = serving.hold("second");
    let younger = serving
        .children()
        .into_iter()
        .find(|child| !older.contains(child))
        .unwrap();

    let has = |pid, what: &str| open_files(pid).iter().any(|file| file.contains(what));
    for what in ["eventpoll", "pidfd"] {
        assert!(has(serving.pid(), what), "{:?}", open_files(serving.pid()));
        assert!(!has(younger, what), "{what}: {:?}", open_files(younger));
    }
    assert!(has(serving.pid(), &listener));
    // A datagram is answered by the socket that it came in by.
    assert_eq!(
        has(younger, &listener),
        cell.is_datagram(),
        "{:?}",
        open_files(younger)
    );

    first.release();
    second.release();
    serving.is_idle();
    assert_eq!(
        file(),
        before,
        "the file of the socket is the parent's to remove"
    );
    serving.serves();
}

pub fn a_killed_child_ends_only_its_request(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let held = serving.hold("doomed");
    let child = serving.child();
    let other = serving.hold("spared");
    serving.kill(child, Signal::KILL);
    serving.tells("ended 1 killed by signal 9");
    if !cell.is_datagram() {
        assert!(held.client.was_cut());
    }
    other.release();
    assert!(serving.path().is_none_or(std::path::Path::exists));
    serving.serves();
    serving.is_idle();
}

pub fn a_signal_to_the_whole_group_is_for_the_parent(cell: Combination) {
    // As service managers and terminals send it: the parent acts on it, and its children finish.
    let serving = Serving::start(cell, Options::default());
    let held = serving.hold("served");
    let child = serving.child();
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        serving.kill(child, signal);
    }
    serving.drain(20_000);
    held.release();
    let report = serving.tells("drained");
    assert!(report.contains("finished=1 refused=0 cut=0"), "{report}");
    serving.quits();
}

pub fn children_that_ignore_the_signal_end_at_the_deadline(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let _held = serving.hold_by("hold-on-to-dear-life", "gate");
    serving.drain(100);
    let report = serving.tells("drained");
    assert!(report.contains("cut=1 abandoned=0"), "{report}");
    serving.tells("ended 1 killed by signal 9");
    serving.quits();
}

pub fn serving_with_threads_running_is_refused(cell: Combination) {
    let mut serving = Serving::bound(cell, Options::default().set("second_thread"));
    serving.tell("serve");
    let refused = serving.tells("refused-to-serve");
    assert!(refused.contains("the process has 2 threads"), "{refused}");
    assert_eq!(serving.children(), [0; 0]);
}

pub fn children_of_a_dead_server_end(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default());
    let _held = serving.hold("gate");
    let child = serving.child();
    serving.crashes();
    // Nobody may be there to collect it.
    serving.waits_for("the child to end", || {
        stat_field(child, STATE).is_none_or(|state| state == "Z")
    });
}
