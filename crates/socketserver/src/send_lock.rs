//! A lock for sending, held while its owner waits for the peer.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::timeouts::timed_out;

/// A fair lock whose waiters are parked by the concurrency model: a coroutine does not block its
/// thread. Releasing the lock never waits, because a destructor releases it. The lock passes to the
/// thread that has waited longest.
#[derive(Debug, Default)]
pub(crate) struct SendLock(Mutex<WaitQueue>);

#[derive(Debug, Default)]
struct WaitQueue {
    locked: bool,
    waiting: VecDeque<(u64, handoff::Sender)>,
    last_number: u64,
}

/// The held lock, released on drop.
pub(crate) struct SendGuard<'a>(&'a SendLock);

impl SendLock {
    /// Takes the lock. Returns `TimedOut` after the deadline.
    pub(crate) fn take(&self, deadline: Option<Instant>) -> io::Result<SendGuard<'_>> {
        let (number, receiver) = {
            let mut queue = self.queue();
            if !queue.locked {
                queue.locked = true;
                return Ok(SendGuard(self));
            }
            let (sender, receiver) = handoff::pair();
            queue.last_number += 1;
            let number = queue.last_number;
            queue.waiting.push_back((number, sender));
            (number, receiver)
        };
        if handoff::receive(&receiver, deadline) {
            return Ok(SendGuard(self));
        }
        let mut queue = self.queue();
        let index = queue.waiting.iter().position(|(other, _)| *other == number);
        match index {
            Some(index) => {
                queue.waiting.remove(index);
                Err(timed_out())
            }
            // The lock was passed on just after the deadline.
            None => Ok(SendGuard(self)),
        }
    }

    /// Takes the lock if it is free.
    pub(crate) fn try_take(&self) -> Option<SendGuard<'_>> {
        let was_locked = std::mem::replace(&mut self.queue().locked, true);
        (!was_locked).then(|| SendGuard(self))
    }

    fn queue(&self) -> MutexGuard<'_, WaitQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SendGuard<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        match queue.waiting.pop_front() {
            Some((_, next)) => handoff::send(next),
            None => queue.locked = false,
        }
    }
}

#[cfg(feature = "green")]
mod handoff {
    use std::time::Instant;

    use greenroom::sync::{OneshotReceiver, OneshotSender, oneshot};

    pub(super) type Sender = OneshotSender<()>;
    pub(super) type Receiver = OneshotReceiver<()>;

    pub(super) fn pair() -> (Sender, Receiver) {
        oneshot()
    }

    pub(super) fn send(next: Sender) {
        let _ = next.send(());
    }

    pub(super) fn receive(receiver: &Receiver, deadline: Option<Instant>) -> bool {
        receiver.recv_until(deadline).is_ok()
    }
}

#[cfg(not(feature = "green"))]
mod handoff {
    use std::sync::mpsc::{self, SyncSender, sync_channel};
    use std::time::Instant;

    pub(super) type Sender = SyncSender<()>;
    pub(super) type Receiver = mpsc::Receiver<()>;

    pub(super) fn pair() -> (Sender, Receiver) {
        sync_channel(1)
    }

    #[expect(clippy::needless_pass_by_value, reason = "a lock is passed on once")]
    pub(super) fn send(next: Sender) {
        let _ = next.try_send(());
    }

    pub(super) fn receive(receiver: &Receiver, deadline: Option<Instant>) -> bool {
        match deadline.map(|end| end.saturating_duration_since(Instant::now())) {
            None => receiver.recv().is_ok(),
            Some(left) => receiver.recv_timeout(left).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn lock_is_exclusive_and_observes_the_deadline() {
        let lock = SendLock::default();
        let first = lock.take(None).unwrap();
        let soon = Some(Instant::now() + Duration::from_millis(10));
        let error = lock.take(soon).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(lock.try_take().is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lock.take(None).is_ok());
            drop(first);
            assert!(waiting.join().unwrap());
        });
        assert!(lock.try_take().is_some());
        lock.take(soon).unwrap();
    }

    #[test]
    fn lock_is_never_lost_when_waiters_time_out() {
        let (lock, inside) = (SendLock::default(), AtomicUsize::new(0));
        let deadline = |n: u64| Instant::now() + Duration::from_micros(n % 50);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (lock, inside) = (&lock, &inside);
                scope.spawn(move || {
                    for n in 0..5_000 {
                        // Many waiters time out at the moment when the lock is passed to them.
                        let taken = match (n + thread) % 3 {
                            0 => lock.try_take(),
                            1 => lock.take(Some(deadline(n))).ok(),
                            _ => lock.take(None).ok(),
                        };
                        if taken.is_some() {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(lock.try_take().is_some());
    }
}
