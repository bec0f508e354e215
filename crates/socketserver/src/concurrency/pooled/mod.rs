//! The model with a bounded pool of threads.

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

/// Runs requests on a bounded number of reusable threads.
///
/// A thread is created when it is first needed. Requests beyond the number of threads wait in a
/// queue, in order of arrival. The defaults are 32 threads and a queue of 128 requests.
///
/// A connection occupies its thread until its handler returns. A
/// [suspended](crate::Connection::suspend_until_readable) connection occupies no thread. Up to
/// 10,000 suspended connections share one additional thread, and count against no other limit.
#[derive(Default)]
pub struct Pooled {
    pub(crate) settings: Settings,
    pool: Option<Arc<Pool>>,
    /// The handle that wakes the accept loop when all threads are busy.
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
    /// Creates the model with its default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of threads. Defaults to 32; 0 counts as 1.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = workers.max(1);
        self
    }

    /// Sets the maximum number of requests that wait for a thread. Defaults to 128.
    #[must_use]
    pub fn queue(mut self, requests: usize) -> Self {
        self.settings.queue = requests;
        self
    }

    /// Sets the policy for a request when the queue is full. Defaults to [`OverloadPolicy::Wait`].
    #[must_use]
    pub fn overload_policy(mut self, policy: OverloadPolicy) -> Self {
        self.settings.at_limit = policy;
        self
    }

    /// Sets the stack size of each thread, in bytes. Defaults to the standard library's 2 MiB.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.settings.stack_size = Some(bytes);
        self
    }

    /// Sets the maximum number of connections that are
    /// [suspended](crate::Connection::suspend_until_readable) without a thread. Defaults to 10,000.
    /// Any further connection keeps its thread.
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
        spawn_task(task, |cell| {
            let pushed = pool.push(Box::new(move || cell.run()));
            pushed.map_err(|(_work, error)| error)
        })
    }
}

/// Ends the workers with the server. Requests accepted before are still served.
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

/// The minimum interval between two wake-ups of the accept loop because all threads are busy.
const TELL: Duration = Duration::from_millis(20);

/// Runs a request to its end or its next suspension.
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
    /// Work in order of arrival, each with its time of arrival.
    queue: VecDeque<(Instant, Work)>,
    /// The system had no thread when one more was asked for.
    is_refused: bool,
    /// Last time at which the accept loop was woken because all threads were busy.
    last_notice: Option<Instant>,
    threads: usize,
    /// Number of threads that wait for work.
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

    /// Locks the state. Work runs outside of the lock and does not panic, so the mutex is never
    /// poisoned.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if no thread remains that could suspend a connection.
    fn has_ended(&self) -> bool {
        let state = self.lock();
        state.closed && state.threads == 0
    }

    /// Returns the time since which the first request in the queue waits, if all threads are busy.
    fn waits_since(&self) -> Option<Instant> {
        let state = self.lock();
        match state.queue.front() {
            Some((since, _)) if self.is_full(&state) => Some(*since),
            // Requests that arrived after the last notice sent no further one, so that the accept loop
            // checks once more.
            _ => state.last_notice.filter(|at| at.elapsed() < TELL),
        }
    }

    /// Returns true if there is work for more threads than there may be. A thread that was woken up
    /// counts as idle until it takes a request.
    fn is_full(&self, state: &State) -> bool {
        state.idle < state.queue.len()
            && (state.threads >= self.settings.workers || state.is_refused)
    }

    /// Queues work, and creates a thread if the work needs one and the limit allows it. Returns the
    /// work if the pool has no thread at all.
    fn push(self: &Arc<Self>, work: Work) -> Result<(), (Work, io::Error)> {
        // One critical section, because the threads of a closed pool end as soon as the queue is
        // empty.
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
                // The existing threads run the work later.
                Err(_) if state.threads > 0 => state.is_refused = true,
                Err(error) => return Err((work, error)),
            }
        }
        let now = Instant::now();
        state.queue.push_back((now, work));
        // The accept loop checks the queue after a while, and repeats the check while the shortage
        // lasts.
        let is_recent = |at: Instant| now.saturating_duration_since(at) < TELL;
        let notify = self.is_full(&state) && !state.last_notice.is_some_and(is_recent);
        if notify {
            state.last_notice = Some(now);
        }
        drop(state);
        self.changed.notify_one();
        if let Some(server) = self.server.as_ref().filter(|_| notify) {
            server.0.lifecycle.wake();
        }
        Ok(())
    }

    fn work(self: &Arc<Self>) {
        let mut state = self.lock();
        loop {
            if let Some((_, work)) = state.queue.pop_front() {
                drop(state);
                if let Some(suspended) = work()
                    && let Err(suspended) = self.idle.admit(self, suspended)
                {
                    wait_to_end(Some(suspended));
                }
                state = self.lock();
            } else if state.closed {
                state.threads -= 1;
                drop(state);
                // The thread of the suspended connections ends after the last worker.
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
