//! A coroutine that runs out of stack aborts the process with a message that names the coroutine
//! and the remedy. Every other fault goes to the previous handler. Each test runs in a process of
//! its own.

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

/// Runs the test of this name again in a child process, where it performs the fault.
fn rerun(test: &str) -> Output {
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new(own);
    command
        .args(["--exact", test, "--nocapture"])
        .env(ROLE, "1");
    command.output().unwrap()
}

fn is_child() -> bool {
    std::env::var_os(ROLE).is_some()
}

fn overflow(guards: GuardPages) {
    let runtime = Runtime::builder()
        .workers(1)
        .stack_size(64 << 10)
        .guard_pages(guards)
        .build()
        .unwrap();
    let permit = runtime.reserve().unwrap();
    let _ = permit
        .spawn("request 7 of 127.0.0.1:5", || descend(0))
        .join();
}

fn check(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "aborted: {stderr}");
    assert!(stderr.contains("'request 7 of 127.0.0.1:5'"), "{stderr}");
    assert!(
        stderr.contains("64 KiB") && stderr.contains("stack_size"),
        "{stderr}"
    );
}

#[test]
fn overflow_report_names_the_coroutine_and_the_remedy() {
    if is_child() {
        return overflow(GuardPages::Auto);
    }
    check(&rerun("overflow_report_names_the_coroutine_and_the_remedy"));
}

#[test]
fn overflow_is_caught_by_mprotect_guards() {
    if is_child() {
        return overflow(GuardPages::Mprotect);
    }
    check(&rerun("overflow_is_caught_by_mprotect_guards"));
}

/// A name whose display code does something that a signal handler must not do.
struct Hostile(fn());

impl Display for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)();
        f.write_str("hostile")
    }
}

fn overflow_of(hostile: fn()) {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let name: Arc<dyn Display + Send + Sync> = Arc::new(Hostile(hostile));
    let permit = runtime.reserve().unwrap();
    let _ = permit.spawn(name, || descend(0)).join();
}

#[test]
fn panicking_name_does_not_hide_an_overflow() {
    if is_child() {
        return overflow_of(|| panic!("while it is displayed"));
    }
    let output = rerun("panicking_name_does_not_hide_an_overflow");
    let stderr = String::from_utf8_lossy(&output.stderr);
    // By SIGABRT, or by SIGSEGV: unwinding may need more space than the signal stack has.
    assert!(output.status.signal().is_some(), "{stderr}");
    assert!(stderr.contains("its stack of 256 KiB"), "{stderr}");
}

/// The report is made on the stack of the signal handler: a switch would leave that suspended.
#[test]
fn name_cannot_suspend_while_an_overflow_is_reported() {
    if is_child() {
        return overflow_of(|| {
            greenroom::yield_now();
            greenroom::sleep(Duration::from_secs(1));
        });
    }
    let output = rerun("name_cannot_suspend_while_an_overflow_is_reported");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "{stderr}");
    assert!(stderr.contains("its stack of 256 KiB"), "{stderr}");
    assert!(stderr.contains("'hostile'"), "{stderr}");
}

/// A coroutine drops its name as its last action.
#[test]
fn overflow_while_a_name_is_dropped_is_reported() {
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
    if is_child() {
        let runtime = Runtime::builder().workers(1).build().unwrap();
        let name: Arc<dyn Display + Send + Sync> = Arc::new(Deep);
        runtime.reserve().unwrap().spawn_detached(name, || ());
        std::thread::sleep(Duration::from_secs(20));
        return;
    }
    let output = rerun("overflow_while_a_name_is_dropped_is_reported");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "{stderr}");
    assert!(stderr.contains("its stack of 256 KiB"), "{stderr}");
}

#[test]
fn overflow_of_a_thread_goes_to_the_standard_library() {
    if is_child() {
        let runtime = Runtime::builder().workers(1).build().unwrap();
        runtime.spawn(|| ()).unwrap().join().unwrap();
        std::thread::spawn(|| descend(0)).join().unwrap();
        return;
    }
    let output = rerun("overflow_of_a_thread_goes_to_the_standard_library");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "{stderr}");
    assert!(
        stderr.contains("has overflowed its stack") && !stderr.contains("coroutine"),
        "{stderr}"
    );
}

#[test]
fn other_fault_ends_the_process_with_sigsegv() {
    if is_child() {
        let runtime = Runtime::builder().workers(1).build().unwrap();
        // A real SIGSEGV, without unsafe code. It is sent many times for two reasons. The standard
        // library's handler, which gets the first one, restores the default action and expects the
        // fault to occur again. And the kernel merges two signals that arrive at once.
        let fault = || {
            let own = std::process::id().to_string();
            for _ in 0..1000 {
                let _ = Command::new("kill").args(["-SEGV", &own]).status();
            }
        };
        let _ = runtime.spawn(fault).unwrap().join();
        return;
    }
    let output = rerun("other_fault_ends_the_process_with_sigsegv");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(11), "{stderr}");
    assert!(!stderr.contains("overflowed"), "{stderr}");
}
