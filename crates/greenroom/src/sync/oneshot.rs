//! A channel for one value.

use std::fmt;
use std::time::Instant;

use super::mpmc::{Receiver, RecvError, SendError, Sender, channel};

/// Creates a channel for one value.
#[must_use]
pub fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let (sender, receiver) = channel(1);
    (OneshotSender(sender), OneshotReceiver(receiver))
}

/// The sending end of a [`oneshot`] channel.
pub struct OneshotSender<T>(Sender<T>);

impl<T> OneshotSender<T> {
    /// Sends the value. Never waits.
    ///
    /// # Errors
    /// Returns [`SendError`] with the value if the receiver is dropped.
    pub fn send(self, value: T) -> Result<(), SendError<T>> {
        self.0.send(value)
    }

    /// Returns true if the receiver is dropped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

impl<T> fmt::Debug for OneshotSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneshotSender").finish_non_exhaustive()
    }
}

/// The receiving end of a [`oneshot`] channel.
pub struct OneshotReceiver<T>(Receiver<T>);

impl<T> OneshotReceiver<T> {
    /// Waits for the value.
    ///
    /// # Errors
    /// Returns [`RecvError::Disconnected`] if the sender is dropped without having sent.
    pub fn recv(self) -> Result<T, RecvError> {
        self.0.recv()
    }

    /// Waits for the value, at most until `deadline`.
    ///
    /// # Errors
    /// Returns [`RecvError::TimedOut`] if `deadline` has passed, and the errors of
    /// [`recv`](Self::recv).
    pub fn recv_until(&self, deadline: Option<Instant>) -> Result<T, RecvError> {
        self.0.recv_until(deadline)
    }
}

impl<T> fmt::Debug for OneshotReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneshotReceiver").finish_non_exhaustive()
    }
}
