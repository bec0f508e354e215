//! A first-in, first-out queue of waiting coroutines and threads.

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

/// A slot in the queue, which is released on drop. If the waiter was already chosen, the drop
/// chooses the next one instead, so that no wake-up is lost.
#[must_use]
pub(crate) struct Slot<'a> {
    list: &'a WaitList,
    waiter: Arc<Waiter>,
    taken: bool,
}

/// The way in which a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    Chosen,
    TimedOut,
    /// The waiting coroutine is panicking, so it must not wait.
    Refused,
}

impl WaitList {
    /// Appends the caller to the queue. Check the condition once more between this and
    /// [`Slot::wait`].
    pub(crate) fn enter(&self) -> Slot<'_> {
        let waiter = Arc::new(Waiter {
            unparker: Unparker::current(),
            chosen: AtomicBool::new(false),
        });
        lock(&self.0).push_back(waiter.clone());
        Slot {
            list: self,
            waiter,
            taken: false,
        }
    }

    /// Wakes the first waiter.
    pub(crate) fn wake_one(&self) {
        let first = lock(&self.0).pop_front();
        if let Some(first) = first {
            first.choose();
        }
    }

    /// Wakes all waiters.
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

impl Slot<'_> {
    /// Waits until another coroutine or thread chooses this waiter.
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

impl Drop for Slot<'_> {
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
