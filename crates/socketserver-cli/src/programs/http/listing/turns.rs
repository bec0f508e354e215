//! A limit for lists that are created at once, for coroutines, threads or processes.

use std::time::{Duration, Instant};

use socketserver::greenroom::sync::{Condvar, Mutex};

/// A semaphore with a bounded queue.
#[derive(Debug)]
pub(super) struct Turns {
    /// The maximum number of turns at once.
    at_once: usize,
    /// The maximum number of callers that wait.
    most_waiting: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    waiting: usize,
}

/// A permit, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    pub fn new(at_once: usize, most_waiting: usize) -> Self {
        Self {
            at_once,
            most_waiting,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    /// Takes a turn, and waits up to `timeout` for one. Returns `None` after the timeout, or if too
    /// many callers wait.
    pub fn take(&self, timeout: Duration) -> Option<Turn<'_>> {
        let until = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        if state.taken == self.at_once {
            if state.waiting == self.most_waiting {
                return None;
            }
            state.waiting += 1;
            while state.taken == self.at_once {
                let timed_out;
                (state, timed_out) = self.changed.wait_until(state, until);
                if timed_out && state.taken == self.at_once {
                    state.waiting -= 1;
                    return None;
                }
            }
            state.waiting -= 1;
        }
        state.taken += 1;
        Some(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().taken -= 1;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_and_waiting_callers_are_limited() {
        let turns = Turns::new(2, 1);
        let first = turns.take(Duration::ZERO).unwrap();
        let _second = turns.take(Duration::ZERO).unwrap();
        assert!(turns.take(Duration::from_millis(10)).is_none(), "in time");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turns.take(Duration::from_secs(20)).is_some());
            while turns.state.lock().waiting == 0 {
                std::thread::yield_now();
            }
            let before = Instant::now();
            assert!(
                turns.take(Duration::from_secs(20)).is_none(),
                "too many wait"
            );
            assert!(before.elapsed() < Duration::from_secs(10));
            drop(first);
            assert!(waiting.join().unwrap());
        });
    }
}
