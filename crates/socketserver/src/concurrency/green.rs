//! The model with a coroutine per request.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use greenroom::net::Transmit;
use greenroom::{Readiness, Runtime};
use rustix::io::Errno;
use rustix::net::AddressFamily;

use super::{Concurrency, Dispatch, OverloadPolicy};
use crate::ServeError;
use crate::event::Event;
use crate::park::{Interest, Park, Parker, send_packet};
use crate::server::{ChildWatcher, ServerHandle, Suspended, Task};
use crate::socket::has_input;

/// The number of requests per worker that have been handed to the workers and have not begun.
/// Further requests wait in the kernel's backlog, where they hold neither a descriptor nor memory
/// of this process.
const BACKLOG_PER_WORKER: usize = 32;

/// Runs each request in a coroutine, on a few worker threads.
///
/// Handlers are written as for any other model. Where a read or write would block the thread, the
/// coroutine is parked and other coroutines run. A request costs the stack memory that it has
/// touched. Handlers sleep with [`greenroom::sleep`], lock with [`greenroom::sync`], and run other
/// blocking operations with [`greenroom::unblock`]. These functions work under the other models,
/// too.
///
/// The defaults are 10,000 active requests, a stack of 256 KiB each (only touched pages use
/// memory), and one worker thread per core. A request stays on its thread. A request that occupies
/// its thread for 100 ms without a pause is reported as [`Event::Stalled`].
///
/// The thread that calls `serve_forever` accepts connections and hands them to the workers. During
/// that time, the thread runs under `SCHED_BATCH` (`sched(7)`). An exception is a thread with a
/// scheduling policy of its own, or one that also serves a server of another model. On a core that
/// it shares with coroutines, it then accepts several clients at once and does not preempt a
/// coroutine for each client. Threads and programs that server hooks start on that thread inherit
/// the policy.
///
/// A system call filter (`seccomp(2)`, `SystemCallFilter` of systemd) should allow
/// `sched_getscheduler` and `sched_setscheduler`, or make them fail. If the filter kills the
/// process for these calls, set [`batch_scheduling`](Self::batch_scheduling) to false.
pub struct Green {
    max_requests: usize,
    at_limit: OverloadPolicy,
    pub(crate) workers: Option<usize>,
    pub(crate) stack_size: usize,
    pub(crate) stall_threshold: Option<Duration>,
    batch_scheduling: bool,
    backlog: Arc<Backlog>,
    /// The handle that reports stalls.
    server: OnceLock<ServerHandle>,
    /// The runtime, started when serving begins.
    runtime: OnceLock<Runtime>,
}

impl Default for Green {
    fn default() -> Self {
        Self {
            max_requests: 10_000,
            at_limit: OverloadPolicy::Wait,
            workers: None,
            stack_size: 256 << 10,
            stall_threshold: Some(Duration::from_millis(100)),
            batch_scheduling: true,
            backlog: Arc::default(),
            server: OnceLock::new(),
            runtime: OnceLock::new(),
        }
    }
}

/// Requests that have been handed to the workers and have not begun.
#[derive(Default)]
struct Backlog {
    count: AtomicUsize,
    /// The accept loop waits for the backlog to shrink.
    is_awaited: AtomicBool,
    limit: OnceLock<usize>,
    loop_of: OnceLock<ServerHandle>,
}

impl Backlog {
    fn limit(&self) -> usize {
        self.limit.get().copied().unwrap_or(BACKLOG_PER_WORKER)
    }

    /// Returns the number of further requests that fit. After 0, the accept loop is woken when the
    /// backlog is half empty.
    fn room(&self) -> usize {
        let room = || {
            self.limit()
                .saturating_sub(self.count.load(Ordering::SeqCst))
        };
        match room() {
            0 => {
                self.is_awaited.store(true, Ordering::SeqCst);
                // Read again, because the backlog may have shrunk before a worker saw the flag.
                room()
            }
            room => room,
        }
    }

    fn enter(self: &Arc<Self>) -> ToBegin {
        self.count.fetch_add(1, Ordering::SeqCst);
        ToBegin(self.clone())
    }
}

/// A place in the backlog, given up when the request begins, or is dropped without it.
struct ToBegin(Arc<Backlog>);

impl Drop for ToBegin {
    fn drop(&mut self) {
        let Self(backlog) = self;
        let left = backlog.count.fetch_sub(1, Ordering::SeqCst) - 1;
        if left <= backlog.limit() / 2
            && backlog.is_awaited.load(Ordering::SeqCst)
            && backlog.is_awaited.swap(false, Ordering::SeqCst)
            && let Some(server) = backlog.loop_of.get()
        {
            server.0.lifecycle.wake();
        }
    }
}

impl Green {
    /// Creates the model with its default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of active requests. Defaults to 10,000; 0 counts as 1.
    #[must_use]
    pub fn max_requests(mut self, max: usize) -> Self {
        self.max_requests = max.max(1);
        self
    }

    /// Sets the policy for a request beyond the limit. Defaults to [`OverloadPolicy::Wait`].
    #[must_use]
    pub fn overload_policy(mut self, policy: OverloadPolicy) -> Self {
        self.at_limit = policy;
        self
    }

    /// Sets the number of threads that run coroutines. Defaults to one per core.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers.max(1));
        self
    }

    /// Sets the stack size of each coroutine, in bytes. Defaults to 256 KiB. A stack overflow ends
    /// the process with a message that names the request.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = bytes;
        self
    }

    /// Sets the time for which a request may occupy its thread before it is reported. Defaults to
    /// 100 ms. `None` disables the report and the thread that measures.
    #[must_use]
    pub fn stall_threshold(mut self, threshold: Option<Duration>) -> Self {
        self.stall_threshold = threshold;
        self
    }

    /// Enables `SCHED_BATCH` for the serving thread. Defaults to true. `false` makes none of the
    /// system calls.
    #[must_use]
    pub fn batch_scheduling(mut self, on: bool) -> Self {
        self.batch_scheduling = on;
        self
    }

    /// Twice the limit plus 1,024. Handlers may start coroutines, and a stack becomes free only a
    /// moment after its request has ended.
    pub(crate) fn max_coroutines(&self) -> u32 {
        let coroutines = self.max_requests.saturating_mul(2).saturating_add(1024);
        u32::try_from(coroutines).unwrap_or(u32::MAX)
    }

    fn start(&self) -> io::Result<Runtime> {
        let mut builder = Runtime::builder()
            .stack_size(self.stack_size)
            .max_coroutines(self.max_coroutines());
        if let Some(workers) = self.workers {
            builder = builder.workers(workers);
        }
        if let (Some(threshold), Some(server)) = (self.stall_threshold, self.server.get()) {
            let server = server.clone();
            builder = builder.on_stall(threshold, move |stall| {
                server.0.emit(&Event::Stalled {
                    name: &stall.name,
                    duration: stall.duration,
                });
            });
        }
        builder.build()
    }
}

impl Concurrency for Green {
    const NAME: &'static str = "green";

    fn limit(&self) -> (usize, OverloadPolicy) {
        (self.max_requests, self.at_limit)
    }

    fn hands_off_to_workers(&self) -> bool {
        self.batch_scheduling
    }

    fn takes_now(&self) -> usize {
        self.backlog.room()
    }

    fn check(&self) -> Result<(), ServeError> {
        if self.runtime.get().is_none() {
            let runtime = self.start().map_err(|source| ServeError::Resources {
                step: "start the workers of the engine",
                source,
            })?;
            let backlog = runtime.workers().saturating_mul(BACKLOG_PER_WORKER);
            let _ = self.backlog.limit.set(backlog);
            let _ = self.runtime.set(runtime);
        }
        Ok(())
    }

    fn process_request<J: Task>(&mut self, task: J, _: &ChildWatcher<'_>) -> Dispatch<J> {
        let Some(runtime) = self.runtime.get() else {
            return Dispatch::NoRoom(task, io::Error::other("the green runtime was not started"));
        };
        match runtime.reserve() {
            Ok(permit) => {
                let name = task.label();
                // Boxed, because the runtime keeps the closure until the coroutine ends.
                let task = Box::new(task);
                let to_begin = self.backlog.enter();
                permit.spawn_detached(name, move || {
                    drop(to_begin);
                    resume_later(task.run());
                });
                Dispatch::Taken
            }
            Err(error) => Dispatch::NoRoom(task, io::Error::other(error)),
        }
    }

    fn parker(&self, server: &ServerHandle) -> Option<Arc<dyn Parker>> {
        let _ = self.server.set(server.clone());
        let _ = self.backlog.loop_of.set(server.clone());
        Some(Arc::new(GreenParker))
    }
}

/// Resumes a suspended request in a new coroutine of this worker. Until then, the request has no
/// stack.
fn resume_later(mut suspended: Option<Box<dyn Suspended>>) {
    let interest = greenroom::Interest::Read;
    while let Some(waiting) = suspended {
        if has_unread_input(&waiting) {
            suspended = waiting.resume(Ok(()));
            continue;
        }
        let (until, name) = (waiting.until(), waiting.label());
        Readiness::when_ready(
            waiting,
            watched,
            interest,
            until,
            name,
            |suspended, result| {
                resume_later(suspended.resume(result));
            },
        );
        return;
    }
}

/// Returns true if the handler has read less than was available. Readiness is edge-triggered:
/// unread input is not reported again.
#[expect(clippy::borrowed_box, reason = "as below")]
fn has_unread_input(suspended: &Box<dyn Suspended>) -> bool {
    let (readiness, socket) = watched(suspended);
    !readiness.is_exhausted() && has_input(socket)
}

#[expect(
    clippy::borrowed_box,
    reason = "when_ready passes a reference to the boxed value"
)]
fn watched(suspended: &Box<dyn Suspended>) -> (&Readiness, BorrowedFd<'_>) {
    let readiness = suspended
        .park()
        .and_then(|park| park.as_any().downcast_ref());
    let readiness = readiness.expect("each connection of the green model has a Readiness");
    (readiness, suspended.socket())
}

impl fmt::Debug for Green {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Green")
            .field("max_requests", &self.max_requests)
            .field("at_limit", &self.at_limit)
            .field("workers", &self.workers)
            .field("stack_size", &self.stack_size)
            .field("runtime", &self.runtime.get())
            .finish_non_exhaustive()
    }
}

/// Parks the caller, a coroutine or a thread.
struct GreenParker;

impl Parker for GreenParker {
    fn attach(&self, _: BorrowedFd<'_>) -> io::Result<Box<dyn Park>> {
        Ok(Box::new(Readiness::new()))
    }

    fn send_packet(&self, socket: &Arc<OwnedFd>, packet: &Transmit<'_>) -> rustix::io::Result<()> {
        // A Unix peer that does not read must not fail the packets to other peers.
        if packet.to().address_family() == AddressFamily::UNIX {
            return send_packet(socket, packet);
        }
        greenroom::net::send_together_from(socket, packet)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

impl Park for Readiness {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn wait(
        &self,
        fd: BorrowedFd<'_>,
        interest: Interest,
        until: Option<Instant>,
    ) -> io::Result<()> {
        let interest = match interest {
            Interest::Read => greenroom::Interest::Read,
            Interest::Write => greenroom::Interest::Write,
        };
        Self::wait(self, fd, interest, until)
    }

    fn is_exhausted(&self) -> bool {
        Self::is_exhausted(self)
    }

    fn record_progress(&self, drained: bool) {
        Self::record_progress(self, drained);
    }
}
