//! A bounded pool of threads.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::{AtLimit, Concurrency, Dispatch};
use crate::server::{ChildSource, Task};

/// Serves requests on a fixed number of threads that are used again and again.
///
/// Threads are made when they are first needed. Requests beyond them wait in a queue, in the order
/// of their arrival. The default is 32 threads and a queue of 128. A connection holds its thread
/// until its handler returns.
pub struct Pooled {
    workers: usize,
    queue: usize,
    at_limit: AtLimit,
    stack_size: Option<usize>,
    pool: Arc<Pool>,
}

impl Default for Pooled {
    fn default() -> Self {
        Self {
            workers: 32,
            queue: 128,
            at_limit: AtLimit::Wait,
            stack_size: None,
            pool: Arc::default(),
        }
    }
}

impl Pooled {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many threads there may be; 0 is taken as 1.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// How many requests may wait for a thread.
    #[must_use]
    pub fn queue(mut self, requests: usize) -> Self {
        self.queue = requests;
        self
    }

    /// What happens to a request when the queue is full.
    #[must_use]
    pub fn at_limit(mut self, policy: AtLimit) -> Self {
        self.at_limit = policy;
        self
    }

    /// The stack of each thread, in bytes; the default is the standard library's, 2 MiB.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }
}

impl Concurrency for Pooled {
    const NAME: &'static str = "pooled";

    fn limit(&self) -> (usize, AtLimit) {
        (self.workers.saturating_add(self.queue), self.at_limit)
    }

    fn process_request<J: Task>(&mut self, task: J, _: &ChildSource<'_>) -> Dispatch<J> {
        let mut state = self.pool.lock();
        if state.idle <= state.queue.len() && state.threads < self.workers {
            let spawned = self.spawn_worker(state.threads + 1);
            match spawned {
                Ok(()) => state.threads += 1,
                // The others get to it, if there are any.
                Err(_) if state.threads > 0 => {}
                Err(error) => return Dispatch::NoRoom(task, error),
            }
        }
        state.queue.push_back(Box::new(move || task.run()));
        drop(state);
        self.pool.changed.notify_one();
        Dispatch::Taken
    }
}

impl Pooled {
    fn spawn_worker(&self, number: usize) -> std::io::Result<()> {
        let mut builder = thread::Builder::new().name(format!("pool {number}"));
        if let Some(bytes) = self.stack_size {
            builder = builder.stack_size(bytes);
        }
        let pool = self.pool.clone();
        builder.spawn(move || pool.work()).map(drop)
    }
}

/// The workers end with the server; what was accepted before is served.
impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.lock().closed = true;
        self.pool.changed.notify_all();
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled")
            .field("workers", &self.workers)
            .field("queue", &self.queue)
            .field("at_limit", &self.at_limit)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Box<dyn FnOnce() + Send>>,
    threads: usize,
    /// Threads that wait for the queue to fill.
    idle: usize,
    closed: bool,
}

impl Pool {
    /// Tasks run outside of the lock and do not panic, so it is never poisoned in earnest.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(task) = state.queue.pop_front() {
                drop(state);
                task();
                state = self.lock();
            } else if state.closed {
                state.threads -= 1;
                return;
            } else {
                state.idle += 1;
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}
