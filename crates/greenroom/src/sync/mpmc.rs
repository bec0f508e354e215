//! A bounded channel with any number of senders and receivers.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::wait_list::{WaitList, Waited};
use crate::worker::lock;

/// Creates a channel that holds at most `capacity` values. A capacity of 0 is taken as 1.
///
/// ```
/// let (sender, receiver) = greenroom::sync::channel(8);
/// let runtime = greenroom::Runtime::new()?;
/// let sender_task = runtime.spawn(move || (1..=100).try_for_each(|n| sender.send(n)))?;
/// assert_eq!(receiver.iter().sum::<i32>(), 5050);
/// sender_task.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let channel = Arc::new(Channel {
        state: Mutex::new(State {
            values: VecDeque::new(),
            senders: 1,
            receivers: 1,
        }),
        capacity: capacity.max(1),
        not_empty: WaitList::default(),
        not_full: WaitList::default(),
    });
    (Sender(channel.clone()), Receiver(channel))
}

struct Channel<T> {
    /// Held briefly, never across a wait.
    state: Mutex<State<T>>,
    capacity: usize,
    not_empty: WaitList,
    not_full: WaitList,
}

struct State<T> {
    values: VecDeque<T>,
    senders: usize,
    receivers: usize,
}

/// The error of [`Sender::send`], with the value: no receiver is left, or the sending coroutine is
/// panicking and cannot wait.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no receiver is left")]
pub struct SendError<T>(pub T);

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SendError").finish_non_exhaustive()
    }
}

/// The error of [`Sender::try_send`], with the value.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError<T> {
    /// The channel is full.
    #[error("the channel is full")]
    Full(T),
    /// No receiver is left.
    #[error("no receiver is left")]
    Disconnected(T),
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Disconnected(_) => "Disconnected(..)",
        })
    }
}

/// The reason why no value was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The channel is empty and no sender is left.
    #[error("no sender is left")]
    Disconnected,
    /// The deadline has passed.
    #[error("the deadline has passed")]
    TimedOut,
    /// The coroutine is panicking, so it cannot wait.
    #[error("a coroutine that is panicking cannot wait")]
    Panicking,
}

/// The sending end of a channel.
pub struct Sender<T>(Arc<Channel<T>>);

impl<T> Sender<T> {
    /// Sends a value; waits while the channel is full.
    ///
    /// # Errors
    /// Returns [`SendError`] with the value if no receiver is left, or if it would have to wait in
    /// a coroutine that is panicking.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        let mut value = value;
        loop {
            match self.try_send(value) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(value)) => return Err(SendError(value)),
                Err(TrySendError::Full(back)) => value = back,
            }
            let slot = self.0.not_full.enter();
            let state = lock(&self.0.state);
            let can_proceed = state.values.len() < self.0.capacity || state.receivers == 0;
            drop(state);
            if !can_proceed && slot.wait(None) == Waited::Refused {
                return Err(SendError(value));
            }
        }
    }

    /// Sends a value if the channel is not full.
    ///
    /// # Errors
    /// Returns [`TrySendError`] with the value if the channel is full or no receiver is left.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let mut state = lock(&self.0.state);
        if state.receivers == 0 {
            return Err(TrySendError::Disconnected(value));
        }
        if state.values.len() >= self.0.capacity {
            return Err(TrySendError::Full(value));
        }
        state.values.push_back(value);
        drop(state);
        self.0.not_empty.wake_one();
        Ok(())
    }

    /// Returns true if no receiver is left.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        lock(&self.0.state).receivers == 0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        lock(&self.0.state).senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.senders -= 1;
        let last = state.senders == 0;
        drop(state);
        if last {
            self.0.not_empty.wake_all();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

/// The receiving end of a channel.
pub struct Receiver<T>(Arc<Channel<T>>);

impl<T> Receiver<T> {
    /// Waits for a value.
    ///
    /// # Errors
    /// Returns [`RecvError::Disconnected`] if the channel is empty and no sender is left.
    pub fn recv(&self) -> Result<T, RecvError> {
        self.recv_until(None)
    }

    /// Waits for a value, at most until `deadline`.
    ///
    /// # Errors
    /// Returns [`RecvError::TimedOut`] if `deadline` has passed, and the errors of
    /// [`recv`](Self::recv).
    pub fn recv_until(&self, deadline: Option<Instant>) -> Result<T, RecvError> {
        loop {
            if let Some(value) = self.try_recv()? {
                return Ok(value);
            }
            let slot = self.0.not_empty.enter();
            let state = lock(&self.0.state);
            let can_proceed = !state.values.is_empty() || state.senders == 0;
            drop(state);
            if can_proceed {
                continue;
            }
            match slot.wait(deadline) {
                Waited::Chosen => {}
                Waited::TimedOut => return Err(RecvError::TimedOut),
                Waited::Refused => return Err(RecvError::Panicking),
            }
        }
    }

    /// Takes a value if there is one.
    ///
    /// # Errors
    /// Returns [`RecvError::Disconnected`] if the channel is empty and no sender is left.
    pub fn try_recv(&self) -> Result<Option<T>, RecvError> {
        let mut state = lock(&self.0.state);
        let value = state.values.pop_front();
        if value.is_none() && state.senders == 0 {
            return Err(RecvError::Disconnected);
        }
        drop(state);
        if value.is_some() {
            self.0.not_full.wake_one();
        }
        Ok(value)
    }

    /// Returns an iterator that waits for each value and ends when no sender is left.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        lock(&self.0.state).receivers += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.receivers -= 1;
        if state.receivers > 0 {
            return;
        }
        // The values cannot be received any more. They are dropped outside of the lock.
        let values = std::mem::take(&mut state.values);
        drop(state);
        self.0.not_full.wake_all();
        drop(values);
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}
