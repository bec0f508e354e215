//! Messages from other threads to a worker, with the protocol that decides who wakes the worker up.
//!
//! A worker that is about to sleep announces that, and then checks the messages once more. A sender
//! leaves the message, and then checks whether the worker sleeps. In every interleaving at least
//! one of the two sees the other. `tests/loom.rs` checks all interleavings with loom.

use crate::sync_shim::{AtomicBool, Mutex, MutexGuard, Ordering};

/// A queue of messages for one receiver.
#[derive(Debug)]
pub(crate) struct Mailbox<M> {
    queue: Mutex<Queue<M>>,
    /// True if the receiver sleeps or is about to, so that a message must wake it up.
    asleep: AtomicBool,
}

#[derive(Debug)]
struct Queue<M> {
    messages: Vec<M>,
    /// True once the receiver has ended and takes no more messages.
    closed: bool,
}

impl<M> Default for Mailbox<M> {
    fn default() -> Self {
        Self {
            queue: Mutex::new(Queue {
                messages: Vec::new(),
                closed: false,
            }),
            asleep: AtomicBool::new(false),
        }
    }
}

impl<M> Mailbox<M> {
    /// Adds a message. Returns true if the caller must wake the receiver up, and returns the
    /// message as the error if the receiver has ended.
    pub(crate) fn send(&self, message: M) -> Result<bool, M> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(message);
        }
        queue.messages.push(message);
        drop(queue);
        Ok(self.asleep.swap(false, Ordering::SeqCst))
    }

    /// Swaps the queued messages with `messages`, an empty list.
    pub(crate) fn take(&self, messages: &mut Vec<M>) {
        std::mem::swap(messages, &mut self.lock().messages);
    }

    /// Announces that the next message needs a wake-up. Returns false, without the announcement, if
    /// a message is already queued: the receiver must not sleep.
    pub(crate) fn fall_asleep(&self) -> bool {
        // A swap and not a store, here and below, so that it takes part in one total order with the
        // swaps of the senders. (On x86-64 it is the same instruction.)
        self.asleep.swap(true, Ordering::SeqCst);
        // Checked after the announcement: a later sender sees the announcement.
        let empty = self.lock().messages.is_empty();
        if !empty {
            self.wake_up();
        }
        empty
    }

    /// Announces that messages need no wake-up any more.
    pub(crate) fn wake_up(&self) {
        self.asleep.swap(false, Ordering::SeqCst);
    }

    /// Returns true if the receiver sleeps.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    /// Refuses all further messages unless some are queued. Returns true if the mailbox is closed.
    pub(crate) fn close(&self) -> bool {
        let mut queue = self.lock();
        queue.closed = queue.messages.is_empty();
        queue.closed
    }

    fn lock(&self) -> MutexGuard<'_, Queue<M>> {
        // No code panics while it holds the lock.
        self.queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
