//! Whose turn it is to send: a lock that is held while somebody waits for the peer.

use std::io;
use std::time::Instant;

use lock::{Condvar, Mutex};

use crate::timeouts::timed_out;

/// Whoever waits is parked as the model parks: a coroutine without its thread.
#[derive(Debug, Default)]
pub(super) struct Turn {
    taken: Mutex<bool>,
    free: Condvar,
}

/// Given back when it is dropped.
pub(super) struct Taken<'a>(&'a Turn);

impl Turn {
    /// Waits for the turn, but not beyond the deadline.
    pub(super) fn take(&self, deadline: Option<Instant>) -> io::Result<Taken<'_>> {
        let mut taken = lock::lock(&self.taken);
        while *taken {
            let timed_out_waiting;
            (taken, timed_out_waiting) = lock::wait_until(&self.free, taken, deadline);
            if timed_out_waiting && *taken {
                return Err(timed_out());
            }
        }
        *taken = true;
        Ok(Taken(self))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *lock::lock(&self.0.taken) = false;
        self.0.free.notify_one();
    }
}

#[cfg(feature = "green")]
mod lock {
    pub(super) use greenroom::sync::{Condvar, Mutex};

    use std::time::Instant;

    use greenroom::sync::MutexGuard;

    pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock()
    }

    pub(super) fn wait_until<'a, T>(
        condvar: &Condvar,
        guard: MutexGuard<'a, T>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, T>, bool) {
        condvar.wait_until(guard, deadline)
    }
}

#[cfg(not(feature = "green"))]
mod lock {
    pub(super) use std::sync::{Condvar, Mutex};

    use std::sync::{MutexGuard, PoisonError};
    use std::time::Instant;

    pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait_until<'a, T>(
        condvar: &Condvar,
        guard: MutexGuard<'a, T>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, T>, bool) {
        let Some(deadline) = deadline else {
            let guard = condvar.wait(guard);
            return (guard.unwrap_or_else(PoisonError::into_inner), false);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = condvar.wait_timeout(guard, left);
        let (guard, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        (guard, waited.timed_out())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_at_a_time_and_not_beyond_the_deadline() {
        let turn = Turn::default();
        let first = turn.take(None).unwrap();
        let soon = Some(Instant::now() + Duration::from_millis(10));
        let error = turn.take(soon).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turn.take(None).is_ok());
            drop(first);
            assert!(waiting.join().unwrap());
        });
        turn.take(soon).unwrap();
    }
}
