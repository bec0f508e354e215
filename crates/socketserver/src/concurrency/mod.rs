//! How requests are served: one at a time, on a thread each, on a pool, in a process each, or in a
//! coroutine each.
//!
//! A model is given a [`Task`] and serves it; it knows nothing of sockets, limits on peers, or
//! stops. One file each, with the same surface.

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
pub(crate) use forking::{CUT, exit};
#[cfg(feature = "green")]
pub use green::Green;
pub use pooled::Pooled;
pub use sequential::Sequential;
pub use threading::Threading;

use crate::ServeError;
use crate::park::Parker;
use crate::server::{ChildWatcher, ServerHandle, Suspended, Task};

/// A way to serve requests: [`Sequential`], [`Threading`], [`Pooled`], [`Forking`], or `Green` with
/// the feature of that name.
pub trait Concurrency: sealed::Sealed + Default + Send + 'static {
    /// The model's name: `sequential`, `threading`, `pooled`, `forking`, `green`.
    const NAME: &'static str;

    /// Requests are served by the loop itself, which does nothing else meanwhile.
    #[doc(hidden)]
    const IS_INLINE: bool = false;

    /// Requests are served by forked children.
    #[doc(hidden)]
    const FORKS: bool = false;

    /// How many requests may be live at once, and what happens to the next one.
    fn limit(&self) -> (usize, OverloadPolicy);

    /// Takes on a task, and serves it here or elsewhere.
    #[doc(hidden)]
    fn process_request<J: Task>(&mut self, task: J, children: &ChildWatcher<'_>) -> Dispatch<J>;

    /// How many more requests the model can begin to serve soon. At 0 they are left in the kernel's
    /// queue, and the model wakes the loop when it is worth while to go on.
    #[doc(hidden)]
    fn takes_now(&self) -> usize {
        usize::MAX
    }

    /// Whether requests that wait between two calls of their handlers count against the limit.
    #[doc(hidden)]
    fn counts_suspended(&self) -> bool {
        true
    }

    /// Since when a request that was taken on waits for a thread, while others hold all of them.
    #[doc(hidden)]
    fn waits_since(&self) -> Option<Instant> {
        None
    }

    /// Whether a drain waits for the requests that this model serves.
    #[doc(hidden)]
    fn is_waited_for(&self) -> bool {
        true
    }

    /// Whether requests are handed to few threads, which are not to be interrupted for each of them.
    #[doc(hidden)]
    fn hands_off_to_workers(&self) -> bool {
        false
    }

    /// Checked before serving begins.
    #[doc(hidden)]
    fn check(&self) -> Result<(), ServeError> {
        Ok(())
    }

    /// Watches the children that are still there, as serving begins.
    #[doc(hidden)]
    fn watch_children(&mut self, children: &ChildWatcher<'_>) -> Result<(), ServeError> {
        let _ = children;
        Ok(())
    }

    /// A child's descriptor became readable: it has exited.
    #[doc(hidden)]
    fn collect_child(&mut self, child: u32, children: &ChildWatcher<'_>) {
        let _ = (child, children);
    }

    /// Kills the children whose time is over; `false` if there are none.
    #[doc(hidden)]
    fn kill_children(&mut self) -> bool {
        false
    }

    /// In a forked child: lets go of what belongs to the parent.
    #[doc(hidden)]
    fn abandon_in_child(&mut self) {}

    /// What parks a handler that waits for its connection, if it is not the kernel.
    #[doc(hidden)]
    fn parker(&self, server: &ServerHandle) -> Option<Arc<dyn Parker>> {
        let _ = server;
        None
    }

    /// What parks the accept loop, if it is not the kernel.
    #[doc(hidden)]
    fn loop_parker(&self) -> Option<Arc<dyn Parker>> {
        None
    }
}

/// Lets the calling thread feed such workers, for as long as what is returned lives.
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

/// What a server does with a request when as many are live as its model allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverloadPolicy {
    /// Leave it in the kernel's queue until another one ends. A full queue makes further clients
    /// wait in `connect`, and drops datagrams.
    #[default]
    Wait,
    /// Accept it and close it at once; a datagram is thrown away.
    Reject,
    /// Accept it and let it wait until another one ends, but not for longer than its patience lasts;
    /// then close it. When all places are taken, the next is closed at once.
    Queue {
        /// How long one may wait.
        patience: Duration,
        /// How many may wait. Each holds a descriptor.
        places: usize,
    },
}

/// What became of a task.
#[doc(hidden)]
#[derive(Debug)]
pub enum Dispatch<J> {
    /// It is being served, or has been.
    Taken,
    /// The system has no thread or process for it now: it comes back whole.
    NoRoom(J, io::Error),
    /// This is the child that is to serve it.
    InChild(J),
}

/// Hands a task to a thread that `start` finds or makes. Where it fails, the closure that the task
/// went into is lost, and the task comes back whole all the same.
fn spawn_task<J: Task>(task: J, start: impl FnOnce(TaskCell<J>) -> io::Result<()>) -> Dispatch<J> {
    let ours = TaskCell(Arc::new(Mutex::new(Some(Box::new(task)))));
    let theirs = TaskCell(ours.0.clone());
    match start(theirs) {
        Ok(()) => Dispatch::Taken,
        Err(error) => match ours.take() {
            Some(task) => Dispatch::NoRoom(*task, error),
            None => Dispatch::Taken,
        },
    }
}

/// A task that belongs to whoever takes it first.
struct TaskCell<J>(Arc<Mutex<Option<Box<J>>>>);

impl<J: Task> TaskCell<J> {
    fn run(self) -> Option<Box<dyn Suspended>> {
        self.take()?.run()
    }

    fn take(&self) -> Option<Box<J>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
