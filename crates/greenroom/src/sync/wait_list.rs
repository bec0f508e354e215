//! Those who wait for something, first come, first served.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::park::{Parked, Unparker, park};
use crate::worker::lock;

/// A queue of coroutines and threads.
#[derive(Debug, Default)]
pub(crate) struct WaitList(Mutex<VecDeque<Arc<Waiter>>>);

#[derive(Debug)]
struct Waiter {
    unparker: Unparker,
    chosen: AtomicBool,
}

/// A place in the queue. Given up when it is dropped; if it had been chosen by then, the next one
/// is chosen instead, so that no wake-up is lost.
#[must_use]
pub(crate) struct Place<'a> {
    list: &'a WaitList,
    waiter: Arc<Waiter>,
    taken: bool,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    Chosen,
    TimedOut,
    /// The coroutine that waits is panicking, and cannot.
    Refused,
}

impl WaitList {
    /// Lines up. Look at the condition once more after this, and before [`Place::wait`].
    pub(crate) fn enter(&self) -> Place<'_> {
        let waiter = Arc::new(Waiter {
            unparker: Unparker::current(),
            chosen: AtomicBool::new(false),
        });
        lock(&self.0).push_back(waiter.clone());
        Place {
            list: self,
            waiter,
            taken: false,
        }
    }

    /// Chooses the first in the queue.
    pub(crate) fn wake_one(&self) {
        let first = lock(&self.0).pop_front();
        if let Some(first) = first {
            first.choose();
        }
    }

    /// Chooses everybody.
    pub(crate) fn wake_all(&self) {
        let all = std::mem::take(&mut *lock(&self.0));
        all.iter().for_each(|waiter| waiter.choose());
    }
}

impl Waiter {
    fn choose(&self) {
        self.chosen.store(true, Ordering::Release);
        self.unparker.unpark();
    }
}

impl Place<'_> {
    /// Waits to be chosen.
    pub(crate) fn wait(mut self, deadline: Option<Instant>) -> Waited {
        loop {
            if self.waiter.chosen.load(Ordering::Acquire) {
                self.taken = true;
                return Waited::Chosen;
            }
            match park(deadline) {
                Parked::Unparked => {}
                Parked::TimedOut => return Waited::TimedOut,
                Parked::Refused => return Waited::Refused,
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut queue = lock(&self.list.0);
        let before = queue.len();
        queue.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
        let was_chosen = queue.len() == before;
        drop(queue);
        if was_chosen {
            self.list.wake_one();
        }
    }
}
