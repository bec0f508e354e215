//! How other threads reach a worker: messages, and the agreement about who wakes it up.
//!
//! A worker that is about to sleep says so, and then looks once more; whoever sends leaves the
//! message, and then looks whether the worker sleeps. In whatever order the two meet, one of them
//! sees the other. Checked by loom in every order there is: `tests/loom.rs`.

use crate::sync_shim::{AtomicBool, Mutex, MutexGuard, Ordering};

/// Messages for one receiver.
#[derive(Debug)]
pub(crate) struct Inbox<M> {
    queue: Mutex<Queue<M>>,
    /// The receiver sleeps, or is about to, and has to be woken up for a message.
    asleep: AtomicBool,
}

#[derive(Debug)]
struct Queue<M> {
    messages: Vec<M>,
    /// The receiver has ended and looks at nothing any more.
    closed: bool,
}

impl<M> Default for Inbox<M> {
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

impl<M> Inbox<M> {
    /// Leaves a message; it comes back if the receiver has ended. `true` asks the caller to wake the
    /// receiver up.
    pub(crate) fn send(&self, message: M) -> Result<bool, M> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(message);
        }
        queue.messages.push(message);
        drop(queue);
        Ok(self.asleep.swap(false, Ordering::SeqCst))
    }

    /// Exchanges the messages for an empty list.
    pub(crate) fn take(&self, messages: &mut Vec<M>) {
        std::mem::swap(messages, &mut self.lock().messages);
    }

    /// Announces that the next message needs a wake-up; `false` if one is there already, and then
    /// it is not the time to sleep.
    pub(crate) fn fall_asleep(&self) -> bool {
        // A swap and no store, here and below: they take their places in one order with those of the
        // senders. (On x86-64 it is the same instruction.)
        self.asleep.swap(true, Ordering::SeqCst);
        // Looked at after the announcement: whoever comes later sees it.
        let empty = self.lock().messages.is_empty();
        if !empty {
            self.wake_up();
        }
        empty
    }

    /// From now on messages are looked at without a wake-up.
    pub(crate) fn wake_up(&self) {
        self.asleep.swap(false, Ordering::SeqCst);
    }

    /// Whether the receiver sleeps.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    /// Accepts no more messages, unless there are some.
    pub(crate) fn close(&self) -> bool {
        let mut queue = self.lock();
        queue.closed = queue.messages.is_empty();
        queue.closed
    }

    fn lock(&self) -> MutexGuard<'_, Queue<M>> {
        // Nothing panics while it is held.
        self.queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
