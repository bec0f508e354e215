//! Concurrency models: one request at a time, or each request on a thread, on a pool thread, in a
//! process, or in a coroutine.
//!
//! A model receives a [`Task`] and runs it. A model does not know sockets, admission limits, or
//! shutdown. Each model has its own file, with the same interface.

mod forking;
#[cfg(feature = "green")]
mod green;
mod pooled;
mod sequential;
mod threading;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use forking::Forking;
pub(crate) use forking::{CANCEL_SIGNAL, exit};
#[cfg(feature = "green")]
pub use green::Green;
pub use pooled::Pooled;
pub use sequential::Sequential;
pub use threading::Threading;

use crate::ServeError;
use crate::park::Parker;
use crate::server::{ChildWatcher, ServerHandle, Suspended, Task};

/// A concurrency model: [`Sequential`], [`Threading`], [`Pooled`], [`Forking`], or `Green` with the
/// feature `green`.
pub trait Concurrency: sealed::Sealed + Default + Send + 'static {
    /// The name of the model: `sequential`, `threading`, `pooled`, `forking`, `green`.
    const NAME: &'static str;

    /// True if the accept loop itself runs requests, and accepts nothing during that time.
    #[doc(hidden)]
    const IS_INLINE: bool = false;

    /// True if forked children run the requests.
    #[doc(hidden)]
    const FORKS: bool = false;

    /// Returns the maximum number of active requests, and the policy for a request beyond that
    /// limit.
    fn limit(&self) -> (usize, OverloadPolicy);

    /// Accepts a task, and runs it here or elsewhere.
    #[doc(hidden)]
    fn process_request<J: Task>(&mut self, task: J, children: &ChildWatcher<'_>) -> Dispatch<J>;

    /// How many more requests the model can begin to serve soon. At 0 they are left in the kernel's
    /// queue, and the model wakes the loop when it is worth while to go on.
    #[doc(hidden)]
    fn takes_now(&self) -> usize {
        usize::MAX
    }

    /// Returns true if suspended requests count against the limit.
    #[doc(hidden)]
    fn counts_suspended(&self) -> bool {
        true
    }

    /// Returns the time since which an accepted request waits for a thread, if all threads are
    /// busy.
    #[doc(hidden)]
    fn waits_since(&self) -> Option<Instant> {
        None
    }

    /// Returns true if a drain waits for the requests of this model.
    #[doc(hidden)]
    fn is_waited_for(&self) -> bool {
        true
    }

    /// Returns true if requests are handed to a few threads, which the accept loop must not preempt
    /// for each request.
    #[doc(hidden)]
    fn hands_off_to_workers(&self) -> bool {
        false
    }

    /// Checks the model before serving begins.
    #[doc(hidden)]
    fn check(&self) -> Result<(), ServeError> {
        Ok(())
    }

    /// Watches the children that still exist when serving begins.
    #[doc(hidden)]
    fn watch_children(&mut self, children: &ChildWatcher<'_>) -> Result<(), ServeError> {
        let _ = children;
        Ok(())
    }

    /// Handles a child's descriptor that became readable: the child has exited.
    #[doc(hidden)]
    fn collect_child(&mut self, child: u32, children: &ChildWatcher<'_>) {
        let _ = (child, children);
    }

    /// Kills the children that are still running after the drain deadline. Returns `false` if no
    /// children exist.
    #[doc(hidden)]
    fn kill_children(&mut self) -> bool {
        false
    }

    /// Releases, in a forked child, the resources that belong to the parent.
    #[doc(hidden)]
    fn abandon_in_child(&mut self) {}

    /// Returns the parker of handlers that wait for their connection, if the kernel does not block
    /// their thread.
    #[doc(hidden)]
    fn parker(&self, server: &ServerHandle) -> Option<Arc<dyn Parker>> {
        let _ = server;
        None
    }

    /// Returns the parker of the accept loop, if the kernel does not block its thread.
    #[doc(hidden)]
    fn loop_parker(&self) -> Option<Arc<dyn Parker>> {
        None
    }
}

/// Lets the calling thread hand requests to workers for the lifetime of the returned guard.
pub(crate) fn hand_off_to_workers() -> impl Sized {
    #[cfg(feature = "green")]
    greenroom::BatchScheduling::begin()
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Sequential {}
    impl Sealed for super::Threading {}
    impl Sealed for super::Pooled {}
    impl Sealed for super::Forking {}
    #[cfg(feature = "green")]
    impl Sealed for super::Green {}
    #[cfg(test)]
    impl Sealed for crate::server::tests::Parked {}
}

/// The policy for a new request when the number of active requests has reached the model's limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverloadPolicy {
    /// Stop accepting until an active request ends. New connections wait in the listen backlog;
    /// further clients then wait in `connect`. The kernel drops datagrams that do not fit into the
    /// receive buffer.
    #[default]
    Wait,
    /// Accept the connection and close it at once; discard a datagram.
    Reject,
    /// Accept the request and queue it until an active request ends. A request that waits longer
    /// than `patience` is closed. If the queue is full, a new request is closed at once.
    Queue {
        /// Maximum time in the queue.
        patience: Duration,
        /// Capacity of the queue. Each queued connection holds a descriptor.
        places: usize,
    },
}

/// The result of dispatching a task.
#[doc(hidden)]
#[derive(Debug)]
pub enum Dispatch<J> {
    /// The task is running, or has already run.
    Taken,
    /// The system cannot create a thread or process now; the task is returned unchanged.
    NoRoom(J, io::Error),
    /// The current process is the forked child that runs the task.
    InChild(J),
}

/// Hands a task to a thread that `start` selects or creates. If `start` fails, its closure is lost,
/// but the task is returned unchanged.
fn spawn_task<J: Task>(task: J, start: impl FnOnce(TaskCell<J>) -> io::Result<()>) -> Dispatch<J> {
    let retained = TaskCell(Arc::new(Mutex::new(Some(Box::new(task)))));
    let cell = TaskCell(retained.0.clone());
    match start(cell) {
        Ok(()) => Dispatch::Taken,
        Err(error) => match retained.take() {
            Some(task) => Dispatch::NoRoom(*task, error),
            None => Dispatch::Taken,
        },
    }
}

/// A task that belongs to the first thread that takes it.
struct TaskCell<J>(Arc<Mutex<Option<Box<J>>>>);

impl<J: Task> TaskCell<J> {
    fn run(self) -> Option<Box<dyn Suspended>> {
        self.take()?.run()
    }

    fn take(&self) -> Option<Box<J>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
