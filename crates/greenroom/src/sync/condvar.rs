//! Waiting for a condition that a lock protects.

use std::time::Instant;

use super::mutex::MutexGuard;
use super::wait_list::{WaitList, Waited};

/// Lets those who hold a [`Mutex`](super::Mutex) wait until others have changed what it protects.
///
/// As with any condition variable, the condition is looked at in a loop.
#[derive(Debug, Default)]
pub struct Condvar {
    waiting: WaitList,
}

impl Condvar {
    /// Nobody waits yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Releases the lock, waits to be notified, and takes the lock again.
    ///
    /// # Panics
    /// In a destructor that runs because of a panic in a coroutine: it cannot wait there.
    pub fn wait<'a, T: ?Sized>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.wait_until(guard, None).0
    }

    /// As [`wait`](Self::wait), but not beyond `deadline`; says whether that has passed.
    ///
    /// # Panics
    /// As for [`wait`](Self::wait).
    pub fn wait_until<'a, T: ?Sized>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, T>, bool) {
        let mutex = guard.mutex();
        let place = self.waiting.enter();
        drop(guard);
        let waited = place.wait(deadline);
        assert!(
            waited != Waited::Refused,
            "a coroutine that is panicking cannot wait for a condition"
        );
        (mutex.lock(), waited == Waited::TimedOut)
    }

    /// Wakes up one of those who wait.
    pub fn notify_one(&self) {
        self.waiting.wake_one();
    }

    /// Wakes up all of them.
    pub fn notify_all(&self) {
        self.waiting.wake_all();
    }
}
