//! The current span of `tracing` belongs to a thread. Here it goes with the coroutine: what a
//! coroutine has entered is left when it suspends, and entered again when it goes on.

use tracing::dispatcher;
use tracing::span::Id;

use crate::join::quietly;
use crate::task::Hold;

/// Spans nested deeper than this stay with the thread. A subscriber that does not keep track of
/// spans would otherwise be asked for ever.
const DEPTH: usize = 64;

/// Leaves the spans that the caller has entered; the innermost comes first.
///
/// The subscriber is the user's. It cannot wait here, as this is what comes before each wait; and
/// if it panics, the span stays as the subscriber has left it.
pub(crate) fn leave() -> Vec<Id> {
    let mut left = Vec::new();
    if dispatcher::has_been_set() {
        let _hold = Hold::begin();
        quietly(|| {
            dispatcher::get_default(|subscriber| {
                while left.len() < DEPTH {
                    let Some(id) = subscriber.current_span().id().cloned() else {
                        return;
                    };
                    subscriber.exit(&id);
                    left.push(id);
                }
            });
        });
    }
    left
}

/// Enters them again.
pub(crate) fn enter(left: &[Id]) {
    if !left.is_empty() {
        let _hold = Hold::begin();
        quietly(|| {
            dispatcher::get_default(|subscriber| {
                for id in left.iter().rev() {
                    subscriber.enter(id);
                }
            });
        });
    }
}
