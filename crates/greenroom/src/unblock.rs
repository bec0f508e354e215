//! A bounded pool of threads for blocking calls, shared by the whole process.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::join::{drop_catching_panic, packet};
use crate::worker::lock;

/// Maximum number of calls of [`unblock()`] that run at once in the whole process; further calls
/// wait.
pub const MAX_BLOCKING_THREADS: usize = 32;

/// The time after which an idle thread of the pool ends.
const IDLE: Duration = Duration::from_secs(10);

/// Runs a blocking call (name resolution, files, long computations) on another thread, and waits
/// for its result. The other coroutines of the worker run while it waits. Outside of the runtime,
/// the call runs on the calling thread.
///
/// At most [`MAX_BLOCKING_THREADS`] calls run at once in the process; further calls wait.
///
/// ```
/// let text = greenroom::unblock(|| std::fs::read_to_string("/proc/self/comm"))?;
/// assert!(!text.is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
/// Panics if `run` panics, if the system cannot start a thread for it, or in a destructor that runs
/// because of a panic.
pub fn unblock<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    if !crate::is_coroutine() {
        return run();
    }
    let (body, handle) = packet(run);
    POOL.push(Box::new(body));
    match handle.join() {
        Ok(value) => value,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

static POOL: Pool = Pool {
    state: Mutex::new(State {
        queue: VecDeque::new(),
        threads: 0,
        idle: 0,
    }),
    changed: Condvar::new(),
};

struct Pool {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    queue: VecDeque<Box<dyn FnOnce() + Send>>,
    threads: usize,
    idle: usize,
}

impl Pool {
    fn push(&'static self, task: Box<dyn FnOnce() + Send>) {
        let mut rejected = None;
        let mut state = lock(&self.state);
        state.queue.push_back(task);
        if state.idle < state.queue.len() && state.threads < MAX_BLOCKING_THREADS {
            let spawned = thread::Builder::new()
                .name("unblock".into())
                .spawn(|| self.work());
            match spawned {
                Ok(_) => state.threads += 1,
                // The other threads run the task, if there are any; otherwise the task fails, and
                // the waiting caller gets an error.
                Err(_) if state.threads > 0 => {}
                Err(_) => rejected = state.queue.pop_back(),
            }
        }
        drop(state);
        // The captured values belong to the user, and their destructors may try to wait.
        drop_catching_panic(rejected);
        self.changed.notify_one();
    }

    fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            if let Some(task) = state.queue.pop_front() {
                drop(state);
                // The task catches its own panics.
                task();
                state = lock(&self.state);
                continue;
            }
            state.idle += 1;
            let (woken, timeout) = self
                .changed
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}
