//! The engine: its workers, how coroutines get onto them, and how it ends.

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

/// Workers that run coroutines. Cheap to clone; all clones are the same engine.
///
/// Once the last one is dropped, the workers end as soon as their coroutines have.
/// [`shutdown`](Self::shutdown) hurries them.
///
/// ```
/// let engine = greenroom::Runtime::new()?;
/// let answer = engine.spawn(|| 6 * 7)?;
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

/// How many workers have ended.
#[derive(Default)]
struct Ended {
    count: Mutex<usize>,
    changed: Condvar,
}

/// Options of an [`Runtime`].
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
    /// How many threads run coroutines; the default is one for each core.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers.max(1));
        self
    }

    /// The stack of each coroutine, in bytes, rounded up to whole pages: 256 KiB by default. What
    /// is not used costs address space only.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = bytes;
        self
    }

    /// How many coroutines there may be at once, in all workers together: 100,000 by default.
    pub fn max_coroutines(mut self, max: u32) -> Self {
        self.max_coroutines = max.max(1);
        self
    }

    /// How stacks are guarded; see [`GuardPages`].
    pub fn guard_pages(mut self, guard_pages: GuardPages) -> Self {
        self.guard_pages = guard_pages;
        self
    }

    /// What the threads are called, followed by a number: `green` by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Calls `report` once for each coroutine that keeps its worker for longer than `threshold`
    /// without giving way, while it does so. It is called on a thread of its own, which sleeps
    /// while the engine does.
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
    /// The system has no room for their threads, descriptors, or address space.
    pub fn build(self) -> io::Result<Runtime> {
        overflow::install();
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let count = self.workers.unwrap_or_else(cores);
        // Rounded up, so that the sum is no less than what was asked for.
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
        let engine = Runtime {
            inner: Arc::new(Inner {
                workers,
                stack_size: self.stack_size,
                ended,
                monitor,
            }),
        };
        for (index, stacks) in stacks.into_iter().enumerate() {
            let handle = engine.inner.workers[index].clone();
            let ended = engine.inner.ended.clone();
            let monitor = engine.inner.monitor.clone();
            thread::Builder::new()
                .name(format!("{} {index}", self.name))
                .spawn(move || {
                    Worker::run_to_end(handle, stacks, monitor.as_deref());
                    *lock(&ended.count) += 1;
                    ended.changed.notify_all();
                })?;
        }
        Ok(engine)
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

/// All stacks are in use: the coroutine was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "out of stacks: {in_use} coroutines are running; raise the engine's max_coroutines, or start \
     another one when one has ended"
)]
#[non_exhaustive]
pub struct SpawnError {
    /// How many coroutines there are.
    pub in_use: usize,
}

/// Figures about an engine; see [`Runtime::counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Switches into a coroutine so far.
    pub switches: u64,
    /// Parked coroutines that were woken up so far.
    pub wakes: u64,
    /// Stacks in use, or promised to a coroutine that is about to start.
    pub stacks_in_use: usize,
}

impl Runtime {
    /// An engine with the default options.
    ///
    /// # Errors
    /// As for [`Builder::build`].
    pub fn new() -> io::Result<Self> {
        Self::builder().build()
    }

    /// Begins an engine with options.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts a coroutine on the worker that has the fewest. It stays on that worker.
    ///
    /// # Errors
    /// [`SpawnError`], if there are as many coroutines as allowed. To keep `run` in that case, use
    /// a [`reserve`](Self::reserve).
    pub fn spawn<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, SpawnError> {
        Ok(self.reserve()?.spawn(TaskName::unnamed(), run))
    }

    /// Reserves a stack on the worker that has the fewest coroutines.
    ///
    /// # Errors
    /// [`SpawnError`].
    pub fn reserve(&self) -> Result<SpawnPermit, SpawnError> {
        let workers = &self.inner.workers;
        let least = workers.iter().min_by_key(|worker| worker.load());
        // Its stacks may have run out before those of others: then anyone will do.
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

    /// Figures about what it does.
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

    /// How many workers it has.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.inner.workers.len()
    }

    /// Ends the engine: every wait for a socket fails from now on with
    /// [`io::ErrorKind::ConnectionAborted`], and the workers end with their last coroutine. Returns
    /// whether that was the case within `timeout`.
    ///
    /// No coroutine is ever destroyed by force. One that does not come to its end keeps its worker,
    /// and is left behind.
    ///
    /// # Panics
    /// If it is called by one of the engine's own coroutines: it would wait for itself.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        let own = Worker::current().is_some_and(|worker| {
            let is_own = |each| Arc::ptr_eq(each, &worker.handle);
            self.inner.workers.iter().any(is_own)
        });
        assert!(
            !own,
            "an engine cannot be shut down by one of its own coroutines"
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
        f.debug_struct("Engine")
            .field("workers", &self.workers())
            .field("stack_size", &self.inner.stack_size)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

/// A stack that is promised; see [`Runtime::reserve`]. Dropping it gives it back.
pub struct SpawnPermit {
    /// Present until it is used.
    worker: Option<Arc<WorkerHandle>>,
}

impl SpawnPermit {
    /// Starts a coroutine with a name, which reports about overflows and stalls mention.
    pub fn spawn<T: Send + 'static>(
        self,
        name: impl Into<TaskName>,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let (body, handle) = packet(run);
        self.start(name.into(), Box::new(body));
        handle
    }

    /// Starts a coroutine that nobody waits for. A panic in it ends it, and goes nowhere.
    pub fn spawn_detached(self, name: impl Into<TaskName>, run: impl FnOnce() + Send + 'static) {
        self.start(name.into(), Box::new(detached(run)));
    }

    fn start(mut self, name: TaskName, body: Box<dyn FnOnce() + Send>) {
        let Some(worker) = &self.worker else { return };
        // A worker that has ended hands it back; dropping it tells whoever joins.
        if worker.send(Message::Spawn(Spawn { name, body })).is_ok() {
            // It is the coroutine's now, and released with its end.
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
        f.debug_struct("Reservation").finish_non_exhaustive()
    }
}

/// Starts a coroutine on the worker of the one that calls. What it takes along need not be `Send`.
///
/// # Errors
/// [`SpawnError`].
///
/// # Panics
/// Outside of a coroutine; use [`Runtime::spawn`] there.
pub fn spawn<T: 'static>(run: impl FnOnce() -> T + 'static) -> Result<JoinHandle<T>, SpawnError> {
    let Some(worker) = Worker::in_coroutine() else {
        panic!("greenroom::spawn needs a coroutine to be called by: use Engine::spawn");
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

/// Lets the other coroutines of this worker that are ready go first; outside of a coroutine, the
/// other threads of the system.
pub fn yield_now() {
    match Worker::in_coroutine() {
        Some(worker) => worker.yield_now(),
        None => thread::yield_now(),
    }
}

/// Lets the other coroutines of this worker go first if the one that calls has had its worker for a
/// millisecond. Otherwise, and outside of a coroutine, it returns at once.
///
/// For a loop that serves one thing after the other without waiting for anything. Operations of this
/// crate's sockets do the same by themselves.
pub fn give_way() {
    if let Some(worker) = Worker::in_coroutine() {
        worker.give_way();
    }
}

/// Whether a coroutine is running here.
#[must_use]
pub fn is_coroutine() -> bool {
    Worker::in_coroutine().is_some()
}
