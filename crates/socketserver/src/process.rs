//! Who this is: numbers of processes and threads, as they are kept in atomics and in tables.

use rustix::process::{Pid, getpid};
use rustix::thread::gettid;

/// The number of this process.
pub(crate) fn this_process() -> u32 {
    number(getpid())
}

/// The number of this thread, which no other thread of any process has.
pub(crate) fn this_thread() -> u32 {
    number(gettid())
}

pub(crate) fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}
