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
    /// The handle is gone: no caller will take the result.
    unwanted: bool,
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

/// Drops a result that has come already; a later one is dropped by the coroutine. The lock decides
/// which of the two it is, so that a result is never dropped along with the last reference to it:
/// that may be the worker's.
impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.packet.state);
        state.unwanted = true;
        let result = state.result.take();
        drop(state);
        drop(result);
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
            unwanted: false,
        }),
    });
    let completion = Completion(Some(packet.clone()));
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
    move || drop_catching_panic(catch_unwind(AssertUnwindSafe(run)))
}

/// Tells that a coroutine ended even if it never began.
struct Completion<T>(Option<Arc<Packet<T>>>);

impl<T> Completion<T> {
    fn complete(mut self, result: thread::Result<T>) {
        if let Some(packet) = self.0.take() {
            packet.complete(result);
        }
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if let Some(packet) = self.0.take() {
            packet.complete(Err(Box::new(
                "the engine ended before it could run this coroutine",
            )));
        }
    }
}

impl<T> Packet<T> {
    fn complete(&self, result: thread::Result<T>) {
        let mut state = lock(&self.state);
        state.ended = true;
        let unwanted = if state.unwanted {
            Some(result)
        } else {
            state.result = Some(result);
            None
        };
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waiting) = waiting {
            waiting.unpark();
        }
        drop_catching_panic(unwanted);
    }
}

/// Runs code of the user's where a panic must not get any further; `None` if it panicked.
pub(crate) fn quietly<T>(run: impl FnOnce() -> T) -> Option<T> {
    // Unwinding may leave what `run` has borrowed in any state; no caller looks at it afterwards.
    catch_unwind(AssertUnwindSafe(run)).map_err(forget).ok()
}

/// Drops what may panic when it is dropped.
pub(crate) fn drop_catching_panic<T>(value: T) {
    quietly(|| drop(value));
}

/// Drops the payload of a panic. If that panics in turn, the second payload is leaked, which ends
/// the chain.
fn forget(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}
