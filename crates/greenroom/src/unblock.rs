//! A place for what blocks: a bounded pool of threads for the whole process.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::join::{drop_catching_panic, packet};
use crate::worker::lock;

/// How many calls of [`unblock()`] run at once, in the whole process; others wait for their turn.
pub const MAX_BLOCKING_THREADS: usize = 32;

/// How long a thread waits for something to do before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// Runs something that blocks (name resolution, files, long computations) on another thread, and
/// waits for its result; the worker's other coroutines go on meanwhile. Outside of the engine it
/// runs on the calling thread.
///
/// At most [`MAX_BLOCKING_THREADS`] such calls run at once; others wait for their turn.
///
/// ```
/// let text = greenroom::unblock(|| std::fs::read_to_string("/proc/self/comm"))?;
/// assert!(!text.is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
/// If `run` panics, or if the system has no thread for it; and in a destructor that runs because
/// of a panic.
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
        let mut refused = None;
        let mut state = lock(&self.state);
        state.queue.push_back(task);
        if state.idle < state.queue.len() && state.threads < MAX_BLOCKING_THREADS {
            let spawned = thread::Builder::new()
                .name("unblock".into())
                .spawn(|| self.work());
            match spawned {
                Ok(_) => state.threads += 1,
                // The others get to it, if there are any; else it fails, and whoever waits is told.
                Err(_) if state.threads > 0 => {}
                Err(_) => refused = state.queue.pop_back(),
            }
        }
        drop(state);
        // What it has captured is the user's, and may want to wait.
        drop_catching_panic(refused);
        self.changed.notify_one();
    }

    fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            if let Some(task) = state.queue.pop_front() {
                drop(state);
                // It catches its own panics.
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
