//! The runtime: its workers, the start of coroutines on them, and shutdown.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::join::{JoinHandle, detached, packet};
use crate::stack::{GuardPages, Stacks, overflow};
use crate::stall::{Monitor, OnStall, Stall};
use crate::task_name::TaskName;
use crate::worker::{Message, Spawn, Worker, WorkerHandle, lock};

/// A set of workers that run coroutines. Cheap to clone; all clones are the same runtime.
///
/// Once the last clone is dropped, each worker ends when its coroutines have ended.
/// [`shutdown`](Self::shutdown) makes them end earlier.
///
/// ```
/// let runtime = greenroom::Runtime::new()?;
/// let answer = runtime.spawn(|| 6 * 7)?;
/// assert_eq!(answer.join().unwrap(), 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    workers: Vec<Arc<WorkerHandle>>,
    stack_size: usize,
    ended: Arc<Ended>,
    monitor: Option<Arc<Monitor>>,
}

/// The number of workers that have ended.
#[derive(Default)]
struct Ended {
    count: Mutex<usize>,
    changed: Condvar,
}

/// Options of a [`Runtime`].
#[must_use]
pub struct Builder {
    workers: Option<usize>,
    stack_size: usize,
    max_coroutines: u32,
    guard_pages: GuardPages,
    name: String,
    on_stall: Option<(Duration, OnStall)>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            workers: None,
            stack_size: 256 << 10,
            max_coroutines: 100_000,
            guard_pages: GuardPages::Auto,
            name: "green".into(),
            on_stall: None,
        }
    }
}

impl Builder {
    /// Sets the number of worker threads. Defaults to one for each core.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers.max(1));
        self
    }

    /// Sets the stack size of each coroutine in bytes, rounded up to whole pages. Defaults to 256
    /// KiB. Unused pages of a stack cost address space only.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = bytes;
        self
    }

    /// Sets the maximum number of coroutines at once, over all workers. Defaults to 100,000.
    pub fn max_coroutines(mut self, max: u32) -> Self {
        self.max_coroutines = max.max(1);
        self
    }

    /// Sets the method that guards stacks; see [`GuardPages`].
    pub fn guard_pages(mut self, guard_pages: GuardPages) -> Self {
        self.guard_pages = guard_pages;
        self
    }

    /// Sets the name of the worker threads, which a number follows. Defaults to `green`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Calls `report` once for each coroutine that occupies its worker for longer than `threshold`
    /// without yielding. The call happens during the stall, on a separate thread that sleeps while
    /// the runtime is idle.
    pub fn on_stall(
        mut self,
        threshold: Duration,
        report: impl Fn(&Stall) + Send + 'static,
    ) -> Self {
        let threshold = threshold.max(Duration::from_millis(1));
        self.on_stall = Some((threshold, Box::new(report)));
        self
    }

    /// Starts the workers.
    ///
    /// # Errors
    /// Returns an error if the system cannot provide the threads, descriptors, or address space.
    pub fn build(self) -> io::Result<Runtime> {
        overflow::install();
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let count = self.workers.unwrap_or_else(cores);
        // Rounded up, so that the sum is at least `max_coroutines`.
        let each = self
            .max_coroutines
            .div_ceil(u32::try_from(count).unwrap_or(u32::MAX));
        let workers = (0..count)
            .map(|_| WorkerHandle::new(each as usize).map(Arc::new))
            .collect::<io::Result<Vec<_>>>()?;
        let stacks = (0..count)
            .map(|_| Stacks::reserve(each, self.stack_size, self.guard_pages))
            .collect::<io::Result<Vec<_>>>()?;
        let monitor = self
            .on_stall
            .map(|(threshold, report)| Monitor::start(&workers, threshold, report))
            .transpose()?;
        let ended = Arc::new(Ended::default());
        let runtime = Runtime {
            inner: Arc::new(Inner {
                workers,
                stack_size: self.stack_size,
                ended,
                monitor,
            }),
        };
        for (index, stacks) in stacks.into_iter().enumerate() {
            let handle = runtime.inner.workers[index].clone();
            let ended = runtime.inner.ended.clone();
            let monitor = runtime.inner.monitor.clone();
            thread::Builder::new()
                .name(format!("{} {index}", self.name))
                .spawn(move || {
                    Worker::run_to_end(handle, stacks, monitor.as_deref());
                    *lock(&ended.count) += 1;
                    ended.changed.notify_all();
                })?;
        }
        Ok(runtime)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("workers", &self.workers)
            .field("stack_size", &self.stack_size)
            .field("max_coroutines", &self.max_coroutines)
            .field("guard_pages", &self.guard_pages)
            .finish_non_exhaustive()
    }
}

/// The error for a coroutine that was not started because all stacks are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "out of stacks: {in_use} coroutines are running; raise the runtime's max_coroutines, or \
     retry after a coroutine has ended"
)]
#[non_exhaustive]
pub struct SpawnError {
    /// The number of coroutines that exist.
    pub in_use: usize,
}

/// Counters of a runtime; see [`Runtime::counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Number of switches into a coroutine since the start.
    pub switches: u64,
    /// Number of parked coroutines that were woken up since the start.
    pub wakes: u64,
    /// Number of stacks in use, or reserved for a coroutine that is about to start.
    pub stacks_in_use: usize,
}

impl Runtime {
    /// Starts a runtime with the default options.
    ///
    /// # Errors
    /// Returns the errors of [`Builder::build`].
    pub fn new() -> io::Result<Self> {
        Self::builder().build()
    }

    /// Returns a builder with the default options.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts a coroutine on the worker with the fewest coroutines. The coroutine stays on that
    /// worker.
    ///
    /// # Errors
    /// Returns [`SpawnError`] if [`max_coroutines`](Builder::max_coroutines) coroutines exist. To
    /// keep `run` in that case, use [`reserve`](Self::reserve).
    pub fn spawn<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, SpawnError> {
        Ok(self.reserve()?.spawn(TaskName::unnamed(), run))
    }

    /// Reserves a stack on the worker that has the fewest coroutines.
    ///
    /// # Errors
    /// Returns [`SpawnError`] if [`max_coroutines`](Builder::max_coroutines) coroutines exist.
    pub fn reserve(&self) -> Result<SpawnPermit, SpawnError> {
        let workers = &self.inner.workers;
        let least = workers.iter().min_by_key(|worker| worker.load());
        // Its stacks may have run out before those of the others: then any worker will do.
        let mut by_choice = least.into_iter().chain(workers);
        match by_choice.find(|worker| worker.reserve()) {
            Some(worker) => Ok(SpawnPermit {
                worker: Some(worker.clone()),
            }),
            None => Err(SpawnError {
                in_use: self.counters().stacks_in_use,
            }),
        }
    }

    /// Returns the counters, summed over all workers.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for worker in &self.inner.workers {
            let (switches, wakes) = worker.counters();
            sum.switches += switches;
            sum.wakes += wakes;
            sum.stacks_in_use += worker.load();
        }
        sum
    }

    /// Returns the number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.inner.workers.len()
    }

    /// Ends the runtime. From now on every wait for a socket fails with
    /// [`io::ErrorKind::ConnectionAborted`], and each worker ends with its last coroutine. Returns
    /// true if all workers have ended within `timeout`.
    ///
    /// No coroutine is ever destroyed by force. A coroutine that does not end keeps its worker
    /// thread, and both are left behind.
    ///
    /// # Panics
    /// Panics if one of the runtime's own coroutines calls it, because that coroutine would wait
    /// for itself.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        let own = Worker::current().is_some_and(|worker| {
            let is_own = |each| Arc::ptr_eq(each, &worker.handle);
            self.inner.workers.iter().any(is_own)
        });
        assert!(
            !own,
            "a runtime cannot be shut down by one of its own coroutines"
        );
        for worker in &self.inner.workers {
            let _ = worker.send(Message::Cancel);
            let _ = worker.send(Message::Stop);
        }
        self.wait(Instant::now().checked_add(timeout))
    }

    fn wait(&self, until: Option<Instant>) -> bool {
        let ended = &self.inner.ended;
        let mut count = lock(&ended.count);
        while *count < self.inner.workers.len() {
            let waited = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return false,
                Some(left) => ended
                    .changed
                    .wait_timeout(count, left)
                    .map(|(count, _)| count)
                    .map_err(|e| PoisonError::new(e.into_inner().0)),
                None => ended.changed.wait(count),
            };
            count = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for worker in &self.workers {
            let _ = worker.send(Message::Stop);
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("workers", &self.workers())
            .field("stack_size", &self.inner.stack_size)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

/// A reserved stack; see [`Runtime::reserve`]. Dropping it releases the stack.
pub struct SpawnPermit {
    /// `Some` until the permit is used.
    worker: Option<Arc<WorkerHandle>>,
}

impl SpawnPermit {
    /// Starts a coroutine with a name. Reports of overflows and stalls mention the name.
    pub fn spawn<T: Send + 'static>(
        self,
        name: impl Into<TaskName>,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let (body, handle) = packet(run);
        self.start(name.into(), Box::new(body));
        handle
    }

    /// Starts a coroutine without a handle. A panic ends the coroutine and is discarded.
    pub fn spawn_detached(self, name: impl Into<TaskName>, run: impl FnOnce() + Send + 'static) {
        self.start(name.into(), Box::new(detached(run)));
    }

    fn start(mut self, name: TaskName, body: Box<dyn FnOnce() + Send>) {
        let Some(worker) = &self.worker else { return };
        // A worker that has ended returns the message. Dropping the message notifies the join
        // handle.
        if worker.send(Message::Spawn(Spawn { name, body })).is_ok() {
            // The stack belongs to the coroutine now, whose end releases it.
            self.worker = None;
        }
    }
}

impl Drop for SpawnPermit {
    fn drop(&mut self) {
        if let Some(worker) = &self.worker {
            worker.release();
        }
    }
}

impl fmt::Debug for SpawnPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnPermit").finish_non_exhaustive()
    }
}

/// Starts a coroutine on the worker of the calling coroutine. The closure need not be `Send`.
///
/// # Errors
/// Returns [`SpawnError`] if all stacks of the worker are in use.
///
/// # Panics
/// Panics outside of a coroutine; use [`Runtime::spawn`] there.
pub fn spawn<T: 'static>(run: impl FnOnce() -> T + 'static) -> Result<JoinHandle<T>, SpawnError> {
    let Some(worker) = Worker::in_coroutine() else {
        panic!("greenroom::spawn was called outside of a coroutine: use Runtime::spawn");
    };
    if !worker.handle.reserve() {
        return Err(SpawnError {
            in_use: worker.handle.load(),
        });
    }
    let (body, handle) = packet(run);
    worker.start(TaskName::unnamed(), Box::new(body));
    Ok(handle)
}

/// Lets the other ready coroutines of this worker run first. Outside of a coroutine, yields to the
/// other threads of the system.
pub fn yield_now() {
    match Worker::in_coroutine() {
        Some(worker) => worker.yield_now(),
        None => thread::yield_now(),
    }
}

/// Lets the other coroutines of this worker run first if the calling coroutine has run for 1 ms
/// without yielding. Otherwise, and outside of a coroutine, returns at once.
///
/// Call it in a loop that processes many items without waiting. Operations of this crate's sockets
/// do the same on their own.
pub fn give_way() {
    if let Some(worker) = Worker::in_coroutine() {
        worker.give_way();
    }
}

/// Returns true if the caller runs in a coroutine.
#[must_use]
pub fn is_coroutine() -> bool {
    Worker::in_coroutine().is_some()
}
