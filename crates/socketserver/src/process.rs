//! Numbers of processes and threads, for atomics and tables.

use rustix::process::{Pid, getpid};
use rustix::thread::gettid;

/// Returns the number of this process.
pub(crate) fn this_process() -> u32 {
    number(getpid())
}

/// Returns the number of this thread, unique among all threads of all processes.
pub(crate) fn this_thread() -> u32 {
    number(gettid())
}

pub(crate) fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}
