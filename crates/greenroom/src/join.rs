//! What a coroutine leaves to whoever waits for it.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::park::{Parked, Unparker, park};
use crate::worker::lock;

/// The result of a coroutine that is still to come; see [`spawn`](crate::spawn).
///
/// Dropping it lets the coroutine go on by itself.
#[must_use = "dropping a handle detaches the coroutine; use `let _ =` to say so"]
pub struct JoinHandle<T> {
    packet: Arc<Packet<T>>,
}

struct Packet<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    result: Option<thread::Result<T>>,
    waiting: Option<Unparker>,
    ended: bool,
}

impl<T> JoinHandle<T> {
    /// Waits for the coroutine to end; a coroutine is parked meanwhile, any other thread blocks.
    ///
    /// # Errors
    /// The payload of the panic, if the coroutine has panicked; hand it to
    /// [`std::panic::resume_unwind`] to pass it on.
    ///
    /// # Panics
    /// In a destructor that runs because of a panic, in a coroutine: it cannot wait there.
    pub fn join(self) -> thread::Result<T> {
        loop {
            {
                let mut state = lock(&self.packet.state);
                if let Some(result) = state.result.take() {
                    return result;
                }
                state.waiting = Some(Unparker::current());
            }
            if park(None) == Parked::Refused {
                panic!("a coroutine that is panicking cannot wait for another one");
            }
        }
    }

    /// Whether the coroutine has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        lock(&self.packet.state).ended
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            .field("finished", &self.is_finished())
            .finish()
    }
}

/// A closure, and the two ends of its result: what the coroutine runs never panics.
pub(crate) fn packet<T>(run: impl FnOnce() -> T) -> (impl FnOnce(), JoinHandle<T>) {
    let packet = Arc::new(Packet {
        state: Mutex::new(State {
            result: None,
            waiting: None,
            ended: false,
        }),
    });
    let completion = Completion(packet.clone());
    let body = move || {
        // Unwinding may leave what `run` has borrowed in any state; that is visible to whoever
        // joins, as a panic.
        let result = catch_unwind(AssertUnwindSafe(run));
        completion.complete(result);
    };
    (body, JoinHandle { packet })
}

/// A closure whose result and panic nobody waits for.
pub(crate) fn detached(run: impl FnOnce()) -> impl FnOnce() {
    // As above; and what a panic leaves is visible to nobody.
    move || drop_quietly(catch_unwind(AssertUnwindSafe(run)))
}

/// Tells that a coroutine ended even if it never began.
struct Completion<T>(Arc<Packet<T>>);

impl<T> Completion<T> {
    fn complete(self, result: thread::Result<T>) {
        self.end(result);
    }

    fn end(&self, result: thread::Result<T>) {
        let mut state = lock(&self.0.state);
        if std::mem::replace(&mut state.ended, true) {
            return;
        }
        state.result = Some(result);
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waiting) = waiting {
            waiting.unpark();
        }
        // A result that nobody will fetch is dropped here, and not while a lock is held.
        if Arc::strong_count(&self.0) == 1 {
            let unwanted = lock(&self.0.state).result.take();
            drop_quietly(unwanted);
        }
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        self.end(Err(Box::new(
            "the engine ended before it could run this coroutine",
        )));
    }
}

/// Drops what may panic when it is dropped.
pub(crate) fn drop_quietly<T>(value: T) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        forget(payload);
    }
}

fn forget(payload: Box<dyn Any + Send>) {
    std::mem::forget(payload);
}
