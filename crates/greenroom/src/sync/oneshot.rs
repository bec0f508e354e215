//! A channel for one value.

use std::fmt;
use std::time::Instant;

use super::mpmc::{Receiver, RecvError, SendError, Sender, channel};

/// Makes a channel for one value.
#[must_use]
pub fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let (sender, receiver) = channel(1);
    (OneshotSender(sender), OneshotReceiver(receiver))
}

/// The end that sends, once.
pub struct OneshotSender<T>(Sender<T>);

impl<T> OneshotSender<T> {
    /// Sends. Never waits.
    ///
    /// # Errors
    /// [`SendError`] with the value, if the receiver is gone.
    pub fn send(self, value: T) -> Result<(), SendError<T>> {
        self.0.send(value)
    }

    /// Whether the receiver is gone.
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

/// The end that receives, once.
pub struct OneshotReceiver<T>(Receiver<T>);

impl<T> OneshotReceiver<T> {
    /// Waits for the value.
    ///
    /// # Errors
    /// [`RecvError::Disconnected`], if the sender is gone and has not sent.
    pub fn recv(self) -> Result<T, RecvError> {
        self.0.recv()
    }

    /// Waits for the value, but not beyond `deadline`.
    ///
    /// # Errors
    /// [`RecvError`].
    pub fn recv_until(&self, deadline: Option<Instant>) -> Result<T, RecvError> {
        self.0.recv_until(deadline)
    }
}

impl<T> fmt::Debug for OneshotReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneshotReceiver").finish_non_exhaustive()
    }
}
