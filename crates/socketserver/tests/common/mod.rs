//! Helpers of all test binaries: waits with a timeout, clients of every transport, a view of a
//! process from outside, and tests that need their own process.

#![allow(dead_code, reason = "each test binary uses a part of this module")]

pub mod client;
pub mod process;
pub mod random;
pub mod running;

use std::thread;
use std::time::{Duration, Instant};

/// The time limit of every wait. It is long because the machine may be loaded, and because only a
/// failing test waits for all of it.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs scenarios, which are functions of a model, under each model that serves many requests at
/// once in one process.
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

/// Waits until `condition` holds, and polls it every few milliseconds. Panics with `what` if the
/// condition does not hold within `timeout`.
#[track_caller]
pub fn eventually(timeout: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(
        becomes_true(timeout, condition),
        "not within {timeout:?}: {what}"
    );
}

/// Returns true if `condition` holds at some time within `timeout`.
pub fn becomes_true(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + timeout;
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
