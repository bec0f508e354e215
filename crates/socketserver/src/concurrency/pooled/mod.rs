//! A bounded pool of threads.

mod idle;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Concurrency, Dispatch, OverloadPolicy, spawn_task};
use crate::park::Parker;
use crate::server::{ChildWatcher, ServerHandle, Suspended, Task, wait_to_end};
use idle::IdleConnections;

/// Serves requests on a fixed number of threads that are used again and again.
///
/// Threads are made when they are first needed. Requests beyond them wait in a queue, in the order
/// of their arrival. The default is 32 threads and a queue of 128.
///
/// A connection holds its thread until its handler returns. One that is
/// [kept alive](crate::Connection::suspend_until_readable) holds none while it waits for more: up to 10,000 of
/// these wait together, at the cost of one more thread for all, and count against no other limit.
#[derive(Default)]
pub struct Pooled {
    pub(crate) settings: Settings,
    pool: Option<Arc<Pool>>,
    /// Told when threads are short.
    server: OnceLock<ServerHandle>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) workers: usize,
    pub(crate) queue: usize,
    pub(crate) at_limit: OverloadPolicy,
    pub(crate) stack_size: Option<usize>,
    pub(crate) max_idle: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 32,
            queue: 128,
            at_limit: OverloadPolicy::Wait,
            stack_size: None,
            max_idle: 10_000,
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
        self.settings.workers = workers.max(1);
        self
    }

    /// How many requests may wait for a thread.
    #[must_use]
    pub fn queue(mut self, requests: usize) -> Self {
        self.settings.queue = requests;
        self
    }

    /// What happens to a request when the queue is full.
    #[must_use]
    pub fn overload_policy(mut self, policy: OverloadPolicy) -> Self {
        self.settings.at_limit = policy;
        self
    }

    /// The stack of each thread, in bytes; the default is the standard library's, 2 MiB.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.settings.stack_size = Some(bytes);
        self
    }

    /// How many connections may be [kept alive](crate::Connection::suspend_until_readable) without a thread.
    /// One more keeps its thread.
    #[must_use]
    pub fn max_idle(mut self, connections: usize) -> Self {
        self.settings.max_idle = connections;
        self
    }
}

impl Concurrency for Pooled {
    const NAME: &'static str = "pooled";

    fn limit(&self) -> (usize, OverloadPolicy) {
        let Settings { workers, queue, .. } = self.settings;
        (workers.saturating_add(queue), self.settings.at_limit)
    }

    fn counts_suspended(&self) -> bool {
        false
    }

    fn waits_since(&self) -> Option<Instant> {
        self.pool.as_ref()?.waits_since()
    }

    fn parker(&self, server: &ServerHandle) -> Option<Arc<dyn Parker>> {
        let _ = self.server.set(server.clone());
        None
    }

    fn process_request<J: Task>(&mut self, task: J, _: &ChildWatcher<'_>) -> Dispatch<J> {
        let settings = self.settings;
        let pool = self
            .pool
            .get_or_insert_with(|| Arc::new(Pool::new(settings, self.server.get().cloned())));
        spawn_task(task, |theirs| {
            let pushed = pool.push(Box::new(move || theirs.run()));
            pushed.map_err(|(_work, error)| error)
        })
    }
}

/// The workers end with the server; what was accepted before is served.
impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.lock().closed = true;
            pool.changed.notify_all();
            pool.idle.wake();
        }
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pooled").field(&self.settings).finish()
    }
}

/// The server is told no more often than this that work waits for a thread.
const TELL: Duration = Duration::from_millis(20);

/// Serves a request to its end or its next pause.
type Work = Box<dyn FnOnce() -> Option<Box<dyn Suspended>> + Send>;

struct Pool {
    settings: Settings,
    state: Mutex<State>,
    changed: Condvar,
    idle: IdleConnections,
    server: Option<ServerHandle>,
}

#[derive(Default)]
struct State {
    /// In the order in which it came, each with the time when it did.
    queue: VecDeque<(Instant, Work)>,
    /// The system had no thread when one more was asked for.
    is_refused: bool,
    /// When the server was last told that threads are short.
    told: Option<Instant>,
    threads: usize,
    /// Threads that wait for the queue to fill.
    idle: usize,
    closed: bool,
}

impl Pool {
    fn new(settings: Settings, server: Option<ServerHandle>) -> Self {
        Self {
            settings,
            state: Mutex::default(),
            changed: Condvar::new(),
            idle: IdleConnections::default(),
            server,
        }
    }

    /// Work runs outside of the lock and does not panic, so it is never poisoned in earnest.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is no thread any more that could bring a guest to the lobby.
    fn is_over(&self) -> bool {
        let state = self.lock();
        state.closed && state.threads == 0
    }

    /// Since when the first in the queue waits, while all threads are held.
    fn waits_since(&self) -> Option<Instant> {
        let state = self.lock();
        match state.queue.front() {
            Some((since, _)) if self.is_full(&state) => Some(*since),
            // What has come since the server was told did not tell it again: it has to look once more.
            _ => state.told.filter(|told| told.elapsed() < TELL),
        }
    }

    /// Whether there is work for more threads than there may be. One that was woken up is idle until it
    /// takes some.
    fn is_full(&self, state: &State) -> bool {
        state.idle < state.queue.len()
            && (state.threads >= self.settings.workers || state.is_refused)
    }

    /// Takes in work, and makes a thread if one more could use it. The work comes back if there is
    /// no thread at all.
    fn push(self: &Arc<Self>, work: Work) -> Result<(), (Work, io::Error)> {
        // In one step: a pool that is closed lets its threads go as soon as there is no work.
        let mut state = self.lock();
        if state.idle <= state.queue.len() && state.threads < self.settings.workers {
            let mut builder = thread::Builder::new().name(format!("pool {}", state.threads + 1));
            if let Some(bytes) = self.settings.stack_size {
                builder = builder.stack_size(bytes);
            }
            let pool = self.clone();
            match builder.spawn(move || pool.work()) {
                Ok(_) => {
                    state.threads += 1;
                    state.is_refused = false;
                }
                // The others get to it.
                Err(_) if state.threads > 0 => state.is_refused = true,
                Err(error) => return Err((work, error)),
            }
        }
        let now = Instant::now();
        state.queue.push_back((now, work));
        // The server looks at it after a while, and goes on looking for as long as it lasts.
        let is_told = |told: Instant| now.saturating_duration_since(told) < TELL;
        let is_short = self.is_full(&state) && !state.told.is_some_and(is_told);
        if is_short {
            state.told = Some(now);
        }
        drop(state);
        self.changed.notify_one();
        if let Some(server) = self.server.as_ref().filter(|_| is_short) {
            server.0.lifecycle.wake();
        }
        Ok(())
    }

    fn work(self: &Arc<Self>) {
        let mut state = self.lock();
        loop {
            if let Some((_, work)) = state.queue.pop_front() {
                drop(state);
                if let Some(pause) = work()
                    && let Err(pause) = self.idle.admit(self, pause)
                {
                    wait_to_end(Some(pause));
                }
                state = self.lock();
            } else if state.closed {
                state.threads -= 1;
                drop(state);
                // The lobby stays open until the last of them is gone.
                self.idle.wake();
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
