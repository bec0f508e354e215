//! Whose turn it is to send: a lock that is held while somebody waits for the peer.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::timeouts::timed_out;

/// Whoever waits is parked as the model parks: a coroutine without its thread. To give the turn back
/// never waits, as that happens in a destructor: it is handed to the one who has waited longest.
#[derive(Debug, Default)]
pub(crate) struct SendLock(Mutex<WaitQueue>);

#[derive(Debug, Default)]
struct WaitQueue {
    taken: bool,
    waiting: VecDeque<(u64, call::Caller)>,
    came: u64,
}

/// Given back when it is dropped.
pub(crate) struct SendGuard<'a>(&'a SendLock);

impl SendLock {
    /// Waits for the turn, but not beyond the deadline.
    pub(crate) fn take(&self, deadline: Option<Instant>) -> io::Result<SendGuard<'_>> {
        let (number, called) = {
            let mut line = self.line();
            if !line.taken {
                line.taken = true;
                return Ok(SendGuard(self));
            }
            let (caller, called) = call::pair();
            line.came += 1;
            let number = line.came;
            line.waiting.push_back((number, caller));
            (number, called)
        };
        if call::comes(&called, deadline) {
            return Ok(SendGuard(self));
        }
        let mut line = self.line();
        let place = line.waiting.iter().position(|(other, _)| *other == number);
        match place {
            Some(place) => {
                line.waiting.remove(place);
                Err(timed_out())
            }
            // It came at the very end.
            None => Ok(SendGuard(self)),
        }
    }

    /// Takes the turn if it is nobody's.
    pub(crate) fn try_take(&self) -> Option<SendGuard<'_>> {
        let was_taken = std::mem::replace(&mut self.line().taken, true);
        (!was_taken).then(|| SendGuard(self))
    }

    fn line(&self) -> MutexGuard<'_, WaitQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SendGuard<'_> {
    fn drop(&mut self) {
        let mut line = self.0.line();
        match line.waiting.pop_front() {
            Some((_, next)) => call::out(next),
            None => line.taken = false,
        }
    }
}

#[cfg(feature = "green")]
mod call {
    use std::time::Instant;

    use greenroom::sync::{OneshotReceiver, OneshotSender, oneshot};

    pub(super) type Caller = OneshotSender<()>;
    pub(super) type Called = OneshotReceiver<()>;

    pub(super) fn pair() -> (Caller, Called) {
        oneshot()
    }

    pub(super) fn out(next: Caller) {
        let _ = next.send(());
    }

    pub(super) fn comes(called: &Called, deadline: Option<Instant>) -> bool {
        called.recv_until(deadline).is_ok()
    }
}

#[cfg(not(feature = "green"))]
mod call {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::time::Instant;

    pub(super) type Caller = SyncSender<()>;
    pub(super) type Called = Receiver<()>;

    pub(super) fn pair() -> (Caller, Called) {
        sync_channel(1)
    }

    #[expect(clippy::needless_pass_by_value, reason = "a call is made once")]
    pub(super) fn out(next: Caller) {
        let _ = next.try_send(());
    }

    pub(super) fn comes(called: &Called, deadline: Option<Instant>) -> bool {
        match deadline.map(|end| end.saturating_duration_since(Instant::now())) {
            None => called.recv().is_ok(),
            Some(left) => called.recv_timeout(left).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn one_at_a_time_and_not_beyond_the_deadline() {
        let turn = SendLock::default();
        let first = turn.take(None).unwrap();
        let soon = Some(Instant::now() + Duration::from_millis(10));
        let error = turn.take(soon).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(turn.try_take().is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turn.take(None).is_ok());
            drop(first);
            assert!(waiting.join().unwrap());
        });
        assert!(turn.try_take().is_some());
        turn.take(soon).unwrap();
    }

    #[test]
    fn it_is_lost_with_nobody() {
        let (turn, inside) = (SendLock::default(), AtomicUsize::new(0));
        let hurry = |n: u64| Instant::now() + Duration::from_micros(n % 50);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (turn, inside) = (&turn, &inside);
                scope.spawn(move || {
                    for n in 0..5_000 {
                        // Many give up at the moment when they are called.
                        let taken = match (n + thread) % 3 {
                            0 => turn.try_take(),
                            1 => turn.take(Some(hurry(n))).ok(),
                            _ => turn.take(None).ok(),
                        };
                        if taken.is_some() {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(turn.try_take().is_some());
    }
}
