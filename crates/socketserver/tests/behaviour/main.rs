//! The behaviours that every transport shows under every concurrency model, as one matrix.
//!
//! The name of a trial is `transport::model::scenario`. Its server runs in a child process: this
//! program, started again. The child has one thread, so that it may fork. It writes its events to a
//! journal. Its threads, children and descriptors are counted from outside, in the same way for
//! every model.
//!
//! | File | Contents |
//! |---|---|
//! | `matrix.rs` | the transports, the models, the trials, and the exceptions with their reasons |
//! | `server_process.rs` | the process of a server: options, hooks, commands |
//! | `scripted_handler.rs` | the handler of every server: it executes the commands of the client |
//! | `server_driver.rs` | the process of a server, as a trial sees it |
//! | `scenarios/` | the trials themselves |

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails"
)]
#![allow(
    unsafe_code,
    reason = "libc installs signal handlers and sends signals with a value"
)]

#[path = "../common/mod.rs"]
mod common;
mod matrix;
mod scenarios;
mod scripted_handler;
mod server_driver;
mod server_process;

use std::num::NonZero;

use libtest_mimic::Arguments;

fn main() {
    if let Some(role) = server_process::Role::from_environment() {
        return role.run();
    }
    let mut arguments = Arguments::from_args();
    // Trials mostly wait for their servers.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    arguments.test_threads.get_or_insert(4 * cores);
    libtest_mimic::run(&arguments, matrix::trials()).exit();
}
