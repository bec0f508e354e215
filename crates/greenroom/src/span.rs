//! The current span of `tracing` belongs to a thread. This module ties it to the coroutine: a
//! coroutine exits its spans when it suspends, and enters them again when it resumes.

use tracing::dispatcher;
use tracing::span::Id;

use crate::join::catch_panic;
use crate::task::Hold;

/// Maximum nesting of spans that are moved; deeper ones stay with the thread. Without this limit,
/// the loop would never end for a subscriber that does not track spans.
const DEPTH: usize = 64;

/// Exits the current spans of the caller, and returns them with the innermost first.
///
/// The subscriber is user code. It cannot wait here, because this runs before each wait. If it
/// panics, the span stays as the subscriber has left it.
pub(crate) fn leave() -> Vec<Id> {
    let mut exited = Vec::new();
    if dispatcher::has_been_set() {
        let _hold = Hold::begin();
        catch_panic(|| {
            dispatcher::get_default(|subscriber| {
                while exited.len() < DEPTH {
                    let Some(id) = subscriber.current_span().id().cloned() else {
                        return;
                    };
                    subscriber.exit(&id);
                    exited.push(id);
                }
            });
        });
    }
    exited
}

/// Enters the spans again.
pub(crate) fn enter(exited: &[Id]) {
    if !exited.is_empty() {
        let _hold = Hold::begin();
        catch_panic(|| {
            dispatcher::get_default(|subscriber| {
                for id in exited.iter().rev() {
                    subscriber.enter(id);
                }
            });
        });
    }
}
