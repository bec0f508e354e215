//! Parking and unparking, the primitive under every wait of this crate.
//!
//! A coroutine or a thread can be parked until it is unparked or a deadline passes. As with
//! [`std::thread::park`], parking may end early for no reason: every wait in this crate is a loop
//! around a condition.

use std::fmt;
use std::sync::Arc;
use std::thread::Thread;
use std::time::Instant;

use crate::slab::Key;
use crate::worker::{Worker, WorkerHandle};

/// The way in which parking ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// Another coroutine or thread unparked it.
    Unparked,
    /// The deadline passed.
    TimedOut,
    /// The coroutine is panicking, so it must not wait.
    Refused,
}

/// Parks the calling coroutine or thread until it is unparked or `deadline` passes.
pub(crate) fn park(deadline: Option<Instant>) -> Parked {
    match Worker::in_coroutine() {
        Some(worker) => worker.park(deadline),
        None => park_thread(deadline),
    }
}

fn park_thread(deadline: Option<Instant>) -> Parked {
    let Some(deadline) = deadline else {
        std::thread::park();
        return Parked::Unparked;
    };
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => {
            std::thread::park_timeout(left);
            Parked::Unparked
        }
        _ => Parked::TimedOut,
    }
}

/// Wakes up one coroutine or thread, from any thread. Does nothing if the target has ended.
#[derive(Clone)]
pub(crate) enum Unparker {
    Coroutine(Arc<WorkerHandle>, Key),
    Thread(Thread),
}

impl Unparker {
    /// Returns the unparker of the calling coroutine or thread.
    pub(crate) fn current() -> Self {
        match Worker::in_coroutine() {
            Some(worker) => worker.unparker(),
            None => Self::Thread(std::thread::current()),
        }
    }

    pub(crate) fn unpark(&self) {
        match self {
            Self::Coroutine(handle, key) => handle.unpark(*key),
            Self::Thread(thread) => thread.unpark(),
        }
    }

    /// Returns true if both unpark the same coroutine or thread.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Coroutine(handle, key), Self::Coroutine(other, others)) => {
                key == others && Arc::ptr_eq(handle, other)
            }
            (Self::Thread(thread), Self::Thread(other)) => thread.id() == other.id(),
            _ => false,
        }
    }
}

impl fmt::Debug for Unparker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coroutine(_, key) => f.debug_tuple("Coroutine").field(key).finish(),
            Self::Thread(thread) => f.debug_tuple("Thread").field(&thread.id()).finish(),
        }
    }
}
