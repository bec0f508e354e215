//! A coroutine that runs out of stack ends the process with a message that names it and the remedy;
//! every other fault is left to whoever handled it before. Each in a process of its own.

#![allow(clippy::unwrap_used)]

use std::fmt::{self, Display};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use greenroom::{GuardPages, Runtime};

const ROLE: &str = "GREENROOM_TEST_ROLE";

fn descend(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if std::hint::black_box(true) {
        descend(depth + 1) + frame[63]
    } else {
        0
    }
}

/// Runs the test of this name again, in a process where it plays its role.
fn rerun(test: &str) -> Output {
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new(own);
    command
        .args(["--exact", test, "--nocapture"])
        .env(ROLE, "1");
    command.output().unwrap()
}

fn plays_role() -> bool {
    std::env::var_os(ROLE).is_some()
}

fn overflow(guards: GuardPages) {
    let engine = Runtime::builder()
        .workers(1)
        .stack_size(64 << 10)
        .guard_pages(guards)
        .build()
        .unwrap();
    let reservation = engine.reserve().unwrap();
    let _ = reservation
        .spawn("request 7 of 127.0.0.1:5", || descend(0))
        .join();
}

fn check(output: &Output) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "aborted: {told}");
    assert!(told.contains("'request 7 of 127.0.0.1:5'"), "{told}");
    assert!(
        told.contains("64 KiB") && told.contains("stack_size"),
        "{told}"
    );
}

#[test]
fn an_overflow_names_the_coroutine_and_the_remedy() {
    if plays_role() {
        return overflow(GuardPages::Auto);
    }
    check(&rerun("an_overflow_names_the_coroutine_and_the_remedy"));
}

#[test]
fn an_overflow_is_caught_by_mprotect_as_well() {
    if plays_role() {
        return overflow(GuardPages::Mprotect);
    }
    check(&rerun("an_overflow_is_caught_by_mprotect_as_well"));
}

/// A name that does what a signal handler must not do.
struct Hostile(fn());

impl Display for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)();
        f.write_str("hostile")
    }
}

fn overflow_of(hostile: fn()) {
    let engine = Runtime::builder().workers(1).build().unwrap();
    let name: Arc<dyn Display + Send + Sync> = Arc::new(Hostile(hostile));
    let reservation = engine.reserve().unwrap();
    let _ = reservation.spawn(name, || descend(0)).join();
}

#[test]
fn a_name_that_panics_does_not_hide_an_overflow() {
    if plays_role() {
        return overflow_of(|| panic!("while it is displayed"));
    }
    let output = rerun("a_name_that_panics_does_not_hide_an_overflow");
    let told = String::from_utf8_lossy(&output.stderr);
    // By SIGABRT, or by SIGSEGV: to unwind may take more room than the stack of a signal handler has.
    assert!(output.status.signal().is_some(), "{told}");
    assert!(told.contains("its stack of 256 KiB"), "{told}");
}

/// The report is made on the stack of the signal handler: a switch would leave that suspended.
#[test]
fn a_name_cannot_suspend_while_an_overflow_is_reported() {
    if plays_role() {
        return overflow_of(|| {
            greenroom::yield_now();
            greenroom::sleep(Duration::from_secs(1));
        });
    }
    let output = rerun("a_name_cannot_suspend_while_an_overflow_is_reported");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "{told}");
    assert!(told.contains("its stack of 256 KiB"), "{told}");
    assert!(told.contains("'hostile'"), "{told}");
}

/// As the last thing that a coroutine does, it drops its name.
#[test]
fn an_overflow_while_a_name_is_dropped_is_reported() {
    struct Deep;
    impl Drop for Deep {
        fn drop(&mut self) {
            descend(0);
        }
    }
    impl Display for Deep {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("deep")
        }
    }
    if plays_role() {
        let engine = Runtime::builder().workers(1).build().unwrap();
        let name: Arc<dyn Display + Send + Sync> = Arc::new(Deep);
        engine.reserve().unwrap().spawn_detached(name, || ());
        std::thread::sleep(Duration::from_secs(20));
        return;
    }
    let output = rerun("an_overflow_while_a_name_is_dropped_is_reported");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "{told}");
    assert!(told.contains("its stack of 256 KiB"), "{told}");
}

#[test]
fn an_overflow_of_a_thread_is_left_to_the_standard_library() {
    if plays_role() {
        let engine = Runtime::builder().workers(1).build().unwrap();
        engine.spawn(|| ()).unwrap().join().unwrap();
        std::thread::spawn(|| descend(0)).join().unwrap();
        return;
    }
    let output = rerun("an_overflow_of_a_thread_is_left_to_the_standard_library");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "{told}");
    assert!(
        told.contains("has overflowed its stack") && !told.contains("coroutine"),
        "{told}"
    );
}

#[test]
fn another_fault_is_a_fault() {
    if plays_role() {
        let engine = Runtime::builder().workers(1).build().unwrap();
        // A real SIGSEGV, without unsafe code. More than once: the standard library's handler, to
        // which the first is handed on, puts the default action back and expects the fault to
        // come again; and of two that come at once the kernel keeps one.
        let fault = || {
            let own = std::process::id().to_string();
            for _ in 0..1000 {
                let _ = Command::new("kill").args(["-SEGV", &own]).status();
            }
        };
        let _ = engine.spawn(fault).unwrap().join();
        return;
    }
    let output = rerun("another_fault_is_a_fault");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(11), "{told}");
    assert!(!told.contains("overflowed"), "{told}");
}
