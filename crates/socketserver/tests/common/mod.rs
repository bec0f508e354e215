//! What the test crates share: waiting with a deadline, clients of every transport, a look at a
//! process from outside, and tests that need a process to themselves.

#![allow(dead_code, reason = "every test crate takes what it needs of it")]

pub mod client;
pub mod process;
pub mod random;
pub mod running;

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what ought to happen at once. Long, as it is only ever waited for in
/// full by a test that fails; the machine may be loaded.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs scenarios, functions of a model, under each that serves many requests at once in a process.
#[allow(unused_macros, reason = "as above")]
macro_rules! under_each_model {
    ($($scenario:ident)*) => {
        mod threading {
            $(#[test] fn $scenario() { super::$scenario(socketserver::Threading::new()); })*
        }
        mod pooled {
            $(#[test] fn $scenario() { super::$scenario(socketserver::Pooled::new()); })*
        }
        #[cfg(feature = "green")]
        mod green {
            $(#[test] fn $scenario() { super::$scenario(socketserver::Green::new()); })*
        }
    };
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use under_each_model;

/// Waits until `condition` holds, looking every few milliseconds; panics with `what` if it does not
/// within `patience`.
#[track_caller]
pub fn eventually(patience: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(
        comes_true(patience, condition),
        "not within {patience:?}: {what}"
    );
}

/// Whether `condition` holds at some time before `patience` is over.
pub fn comes_true(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    let mut step = Duration::from_micros(200);
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(step);
        step = (step * 2).min(Duration::from_millis(10));
    }
    true
}
