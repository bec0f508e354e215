//! The behaviours that hold on every transport under every concurrency model, as one matrix.
//!
//! A trial is `transport::model::scenario`. Its server runs in a process of its own: this program,
//! started again. That process has one thread, so that it may fork; what happens in it is written
//! to a journal, and what it holds (threads, children, descriptors) is counted from outside, in the
//! same way whichever the model.
//!
//! | File | What it has |
//! |---|---|
//! | `matrix.rs` | the transports, the models, the trials, and what does not apply where |
//! | `stage.rs` | the process of a server: options, hooks, commands |
//! | `actor.rs` | the handler, the same for all: it does what the client says |
//! | `serving.rs` | a server's process as a trial sees it |
//! | `scenarios/` | the trials themselves |

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails"
)]
#![allow(
    unsafe_code,
    reason = "signal handlers, and signals with a value, by libc"
)]

mod actor;
#[path = "../common/mod.rs"]
mod common;
mod matrix;
mod scenarios;
mod serving;
mod stage;

use std::num::NonZero;

use libtest_mimic::Arguments;

fn main() {
    if let Some(role) = stage::Role::from_environment() {
        return role.play();
    }
    let mut arguments = Arguments::from_args();
    // Trials wait for their servers most of the time.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    arguments.test_threads.get_or_insert(4 * cores);
    libtest_mimic::run(&arguments, matrix::trials()).exit();
}
