//! A condition variable.

use std::time::Instant;

use super::mutex::MutexGuard;
use super::wait_list::{WaitList, Waited};

/// A condition variable: a holder of a [`Mutex`](super::Mutex) waits until the protected value
/// changes.
///
/// As with any condition variable, check the condition in a loop.
#[derive(Debug, Default)]
pub struct Condvar {
    waiting: WaitList,
}

impl Condvar {
    /// Creates a condition variable without waiters.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Releases the lock, waits to be notified, and takes the lock again.
    ///
    /// # Panics
    /// Panics in a destructor that runs because of a panic in a coroutine, because a coroutine that
    /// is panicking cannot wait.
    pub fn wait<'a, T: ?Sized>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.wait_until(guard, None).0
    }

    /// Waits as [`wait`](Self::wait) does, but at most until `deadline`. Returns true with the
    /// guard if the deadline has passed.
    ///
    /// # Panics
    /// Panics in the same cases as [`wait`](Self::wait).
    pub fn wait_until<'a, T: ?Sized>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, T>, bool) {
        let mutex = guard.mutex();
        let slot = self.waiting.enter();
        drop(guard);
        let waited = slot.wait(deadline);
        assert!(
            waited != Waited::Refused,
            "a coroutine that is panicking cannot wait for a condition"
        );
        (mutex.lock(), waited == Waited::TimedOut)
    }

    /// Wakes up one waiter.
    pub fn notify_one(&self) {
        self.waiting.wake_one();
    }

    /// Wakes up all waiters.
    pub fn notify_all(&self) {
        self.waiting.wake_all();
    }
}
