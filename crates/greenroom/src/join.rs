//! The result of a coroutine and the handle that waits for it.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::park::{Parked, Unparker, park};
use crate::worker::lock;

/// A handle that waits for the result of a coroutine; see [`spawn`](crate::spawn).
///
/// Dropping the handle detaches the coroutine.
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
    /// True once the handle is dropped: no caller will take the result.
    unwanted: bool,
}

impl<T> JoinHandle<T> {
    /// Waits for the coroutine to end. A calling coroutine is parked; any other thread blocks.
    ///
    /// # Errors
    /// Returns the payload of the panic if the coroutine has panicked. Pass it to
    /// [`std::panic::resume_unwind`] to propagate the panic.
    ///
    /// # Panics
    /// Panics in a destructor that runs because of a panic in a coroutine, because a coroutine that
    /// is panicking cannot wait.
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

    /// Returns true if the coroutine has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        lock(&self.packet.state).ended
    }
}

/// Drops a result that is already there; the coroutine drops a later one. The lock decides which of
/// the two applies, so a result is never dropped together with the last reference to the packet.
/// The last reference may belong to the worker.
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

/// Returns the closure for the coroutine, which never panics, and the handle for its result.
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
        // Unwinding may leave the values that `run` has borrowed in any state. The caller of `join`
        // sees that as a panic.
        let result = catch_unwind(AssertUnwindSafe(run));
        completion.complete(result);
    };
    (body, JoinHandle { packet })
}

/// Returns a closure whose result and panic are discarded.
pub(crate) fn detached(run: impl FnOnce()) -> impl FnOnce() {
    // As above, but the panic is not reported.
    move || drop_catching_panic(catch_unwind(AssertUnwindSafe(run)))
}

/// Reports the end of a coroutine, even if the coroutine never began.
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
                "the runtime ended before it could run this coroutine",
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

/// Runs user code where a panic must not propagate. Returns `None` if the code panicked.
pub(crate) fn catch_panic<T>(run: impl FnOnce() -> T) -> Option<T> {
    // Unwinding may leave the values that `run` has borrowed in any state; no caller looks at them
    // later.
    catch_unwind(AssertUnwindSafe(run))
        .map_err(drop_payload)
        .ok()
}

/// Drops a value whose destructor may panic.
pub(crate) fn drop_catching_panic<T>(value: T) {
    catch_panic(|| drop(value));
}

/// Drops the payload of a panic. If that panics in turn, the second payload is leaked, which ends
/// the chain.
fn drop_payload(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}
