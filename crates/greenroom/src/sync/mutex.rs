//! A lock that may be held across a wait.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{self, TryLockError};

use super::wait_list::{WaitList, Waited};

/// A lock for coroutines and threads.
///
/// Unlike [`std::sync::Mutex`], it may be held while the coroutine waits. Other coroutines that
/// want the lock are parked, and the worker runs further ones. A panic does not poison the lock.
///
/// The guard is not `Send`, because a coroutine never moves to another thread.
///
/// ```
/// use greenroom::{Runtime, sleep, sync::Mutex};
/// use std::{sync::Arc, time::Duration};
///
/// let runtime = Runtime::builder().workers(1).build()?;
/// let total = Arc::new(Mutex::new(0));
/// let add = |total: Arc<Mutex<i32>>| move || {
///     let mut total = total.lock();
///     let before = *total;
///     sleep(Duration::from_millis(1));
///     *total = before + 1;
/// };
/// let all = (0..10).map(|_| runtime.spawn(add(total.clone()))).collect::<Result<Vec<_>, _>>()?;
/// all.into_iter().for_each(|one| one.join().unwrap());
/// assert_eq!(*total.lock(), 10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct Mutex<T: ?Sized> {
    waiting: WaitList,
    /// Only `try_lock` is called on it, never `lock`.
    inner: sync::Mutex<T>,
}

impl<T> Mutex<T> {
    /// Creates an unlocked mutex.
    pub fn new(value: T) -> Self {
        Self {
            waiting: WaitList::default(),
            inner: sync::Mutex::new(value),
        }
    }

    /// Consumes the mutex and returns the value.
    pub fn into_inner(self) -> T {
        self.inner
            .into_inner()
            .unwrap_or_else(sync::PoisonError::into_inner)
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits until the lock is free, and takes it.
    ///
    /// # Panics
    /// Panics in a destructor that runs because of a panic in a coroutine, if the lock is not free:
    /// a coroutine that is panicking cannot wait. A panic in a destructor aborts the process; use
    /// [`try_lock`](Self::try_lock) there.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            let slot = self.waiting.enter();
            // The lock may have been released before this waiter was in the queue.
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            assert!(
                slot.wait(None) != Waited::Refused,
                "a coroutine that is panicking cannot wait for a lock: use try_lock in destructors"
            );
        }
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = match self.inner.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(MutexGuard {
            lock: self,
            guard: Some(guard),
        })
    }

    /// Returns the value without locking, because `&mut self` is exclusive.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner
            .get_mut()
            .unwrap_or_else(sync::PoisonError::into_inner)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(value) => f.debug_tuple("Mutex").field(&&*value).finish(),
            None => f.write_str("Mutex(<locked>)"),
        }
    }
}

/// A guard that releases the lock when it is dropped.
#[must_use]
pub struct MutexGuard<'a, T: ?Sized> {
    lock: &'a Mutex<T>,
    /// `Some` until the guard is dropped.
    guard: Option<sync::MutexGuard<'a, T>>,
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    pub(super) fn mutex(&self) -> &'a Mutex<T> {
        self.lock
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().expect("held until it is dropped")
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().expect("held until it is dropped")
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.lock.waiting.wake_one();
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
