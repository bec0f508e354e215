//! A coroutine per request.

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

/// Requests of each worker that have been handed to it and have not begun. Further ones wait in the
/// kernel's queue: a worker begins new ones after it has gone on with the others, and what has left the
/// kernel holds a descriptor and memory.
const BACKLOG_PER_WORKER: usize = 32;

/// Serves each request in a coroutine, on a few threads.
///
/// Handlers are written as for any other model. Where one would block its thread in a read or a
/// write, its coroutine is parked and others go on; a request costs the memory that its stack has
/// touched. Handlers sleep with [`greenroom::sleep`], lock with [`greenroom::sync`], and put what
/// blocks otherwise into [`greenroom::unblock`]; these work under the other models, too.
///
/// The default limit is 10,000 requests at once, with a stack of 256 KiB for each (of which only
/// what is used takes memory), and a thread for each core. A request stays on its thread. One that
/// keeps its thread to itself for 100 ms is reported as
/// [`Event::Stalled`].
///
/// Whoever calls `serve_forever` accepts, and hands requests on. Meanwhile that thread is scheduled
/// as `SCHED_BATCH` (`sched(7)`), unless it is scheduled in a way of its own, or serves others as
/// well: where it shares a core with coroutines it finds several clients at once, and does not
/// interrupt a coroutine for each. Threads and programs that hooks of the server start there are
/// scheduled in that way, too. A filter of system calls (`seccomp(2)`, `SystemCallFilter` of
/// systemd) should let `sched_getscheduler` and `sched_setscheduler` pass, or have them fail; if it
/// ends the process for them, there is [`batch_scheduling`](Self::batch_scheduling).
pub struct Green {
    max_requests: usize,
    at_limit: OverloadPolicy,
    pub(crate) workers: Option<usize>,
    pub(crate) stack_size: usize,
    pub(crate) stall_threshold: Option<Duration>,
    batch_scheduling: bool,
    backlog: Arc<Backlog>,
    /// Told of stalls.
    server: OnceLock<ServerHandle>,
    /// Started when serving begins.
    engine: OnceLock<Runtime>,
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
            engine: OnceLock::new(),
        }
    }
}

/// Requests that have been handed to the workers and have not begun.
#[derive(Default)]
struct Backlog {
    count: AtomicUsize,
    /// The loop waits for it to shrink.
    is_awaited: AtomicBool,
    limit: OnceLock<usize>,
    loop_of: OnceLock<ServerHandle>,
}

impl Backlog {
    fn limit(&self) -> usize {
        self.limit.get().copied().unwrap_or(BACKLOG_PER_WORKER)
    }

    /// How many more there may be. At 0 the loop is woken when there are half as many.
    fn room(&self) -> usize {
        let room = || {
            self.limit()
                .saturating_sub(self.count.load(Ordering::SeqCst))
        };
        match room() {
            0 => {
                self.is_awaited.store(true, Ordering::SeqCst);
                // Looked at again: it may have shrunk before a worker could see this.
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
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many requests may be served at once; 0 is taken as 1.
    #[must_use]
    pub fn max_requests(mut self, max: usize) -> Self {
        self.max_requests = max.max(1);
        self
    }

    /// What happens to the next one.
    #[must_use]
    pub fn overload_policy(mut self, policy: OverloadPolicy) -> Self {
        self.at_limit = policy;
        self
    }

    /// How many threads run coroutines; the default is one for each core.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers.max(1));
        self
    }

    /// The stack of each coroutine, in bytes. An overflow ends the process, with a message that
    /// names the request.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = bytes;
        self
    }

    /// How long a request may keep its thread to itself before that is reported; `None` turns the
    /// report off, and the thread that looks with it.
    #[must_use]
    pub fn stall_threshold(mut self, threshold: Option<Duration>) -> Self {
        self.stall_threshold = threshold;
        self
    }

    /// Whether the thread that serves is scheduled as `SCHED_BATCH` meanwhile. It is, unless this says
    /// that the system calls for it are not to be made.
    #[must_use]
    pub fn batch_scheduling(mut self, on: bool) -> Self {
        self.batch_scheduling = on;
        self
    }

    /// Twice the limit: handlers may start coroutines of their own, and a stack is free again only a
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
        if self.engine.get().is_none() {
            let engine = self.start().map_err(|source| ServeError::Resources {
                step: "start the workers of the engine",
                source,
            })?;
            let backlog = engine.workers().saturating_mul(BACKLOG_PER_WORKER);
            let _ = self.backlog.limit.set(backlog);
            let _ = self.engine.set(engine);
        }
        Ok(())
    }

    fn process_request<J: Task>(&mut self, task: J, _: &ChildWatcher<'_>) -> Dispatch<J> {
        let Some(engine) = self.engine.get() else {
            return Dispatch::NoRoom(task, io::Error::other("the engine was not started"));
        };
        match engine.reserve() {
            Ok(reservation) => {
                let name = task.label();
                // Boxed by itself: what a coroutine runs is kept until it ends.
                let task = Box::new(task);
                let to_begin = self.backlog.enter();
                reservation.spawn_detached(name, move || {
                    drop(to_begin);
                    resume_later(task.run());
                });
                Dispatch::Taken
            }
            Err(out_of_stacks) => Dispatch::NoRoom(task, io::Error::other(out_of_stacks)),
        }
    }

    fn parker(&self, server: &ServerHandle) -> Option<Arc<dyn Parker>> {
        let _ = self.server.set(server.clone());
        let _ = self.backlog.loop_of.set(server.clone());
        Some(Arc::new(GreenParker))
    }
}

/// Lets a request that is to go on later do so in a new coroutine of this worker. Until then it has
/// no stack.
fn resume_later(mut pause: Option<Box<dyn Suspended>>) {
    let interest = greenroom::Interest::Read;
    while let Some(waiting) = pause {
        if has_left(&waiting) {
            pause = waiting.resume(Ok(()));
            continue;
        }
        let (until, name) = (waiting.until(), waiting.label());
        Readiness::when_ready(waiting, watched, interest, until, name, |pause, waited| {
            resume_later(pause.resume(waited));
        });
        return;
    }
}

/// Whether the handler has read less than there was. Readiness is told once: what was left is not
/// told again.
#[expect(clippy::borrowed_box, reason = "as below")]
fn has_left(pause: &Box<dyn Suspended>) -> bool {
    let (readiness, socket) = watched(pause);
    !readiness.is_exhausted() && has_input(socket)
}

#[expect(
    clippy::borrowed_box,
    reason = "it is what waits, and when_ready lends it like this"
)]
fn watched(pause: &Box<dyn Suspended>) -> (&Readiness, BorrowedFd<'_>) {
    let readiness = pause.park().and_then(|park| park.as_any().downcast_ref());
    let readiness = readiness.expect("every connection of this model was given one");
    (readiness, pause.socket())
}

impl fmt::Debug for Green {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Green")
            .field("max_requests", &self.max_requests)
            .field("at_limit", &self.at_limit)
            .field("workers", &self.workers)
            .field("stack_size", &self.stack_size)
            .field("engine", &self.engine.get())
            .finish_non_exhaustive()
    }
}

/// Parks whoever waits, a coroutine or a thread.
struct GreenParker;

impl Parker for GreenParker {
    fn attach(&self, _: BorrowedFd<'_>) -> io::Result<Box<dyn Park>> {
        Ok(Box::new(Readiness::new()))
    }

    fn send_packet(&self, socket: &Arc<OwnedFd>, packet: &Transmit<'_>) -> rustix::io::Result<()> {
        // One Unix peer that does not read must not fail what goes to others.
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
