//! The coroutines of one worker: a table of them, their states, and the switch into one and out
//! of it.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::Arc;
use std::time::Instant;

use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::stack::SlabStack;

/// Names a coroutine of a worker. Its place may be used again later, under another round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) index: u32,
    round: u32,
}

/// What a coroutine runs: it comes back as a value whatever happens, so it never unwinds.
pub(crate) type Body = Box<dyn FnOnce()>;

type Suspender = Yielder<(), ()>;

/// A coroutine and the stack it stands on.
///
/// Dropping one that has not ended leaves it suspended for good, with its stack and all that is on
/// it: unwinding it by force would run destructors that may want to suspend.
pub(crate) struct Fiber {
    coroutine: ManuallyDrop<Coroutine<(), (), (), SlabStack>>,
    /// Where it suspends; null until it has run.
    suspender: *const Suspender,
}

thread_local! {
    /// The suspender of the coroutine that runs on this thread; null while none does.
    static SUSPENDER: Cell<*const Suspender> = const { Cell::new(ptr::null()) };
}

impl Fiber {
    pub(crate) fn new(stack: SlabStack, body: Body) -> Self {
        let coroutine = Coroutine::with_stack(stack, move |suspender: &Suspender, ()| {
            SUSPENDER.set(suspender);
            body();
        });
        Self {
            coroutine: ManuallyDrop::new(coroutine),
            suspender: ptr::null(),
        }
    }

    /// Runs it until it suspends or ends; `true` if it ended.
    pub(crate) fn resume(&mut self) -> bool {
        SUSPENDER.set(self.suspender);
        let result = self.coroutine.resume(());
        self.suspender = SUSPENDER.replace(ptr::null());
        matches!(result, CoroutineResult::Return(()))
    }

    /// The stack of one that has ended.
    ///
    /// # Panics
    /// If it has not.
    pub(crate) fn into_stack(self) -> SlabStack {
        ManuallyDrop::into_inner(self.coroutine).into_stack()
    }
}

/// Switches from the coroutine that runs on this thread to the worker under it.
pub(crate) fn suspend() {
    let suspender = SUSPENDER.get();
    assert!(!suspender.is_null(), "suspended outside of a coroutine");
    // SAFETY: it is set while, and only while, the coroutine that it belongs to runs on this thread:
    // by the coroutine itself when it starts, by `resume` when it goes on, and `resume` takes it
    // away again when it returns. The yielder lives on that coroutine's stack, below all of its
    // frames, for as long as it runs; and a coroutine never runs on another thread, as neither it
    // nor this pointer is `Send`.
    unsafe { (*suspender).suspend(()) };
}

/// One coroutine, as its worker knows it.
pub(crate) struct Task {
    pub(crate) state: State,
    /// One of the worker's stacks is promised to it, or in use by it.
    pub(crate) reserved: bool,
    pub(crate) name: Arc<str>,
    /// It waits, and nobody has put it into the run queue.
    pub(crate) parked: bool,
    /// Unparked since it last looked.
    pub(crate) unparked: bool,
    /// When it wants to be woken up at the latest, while it is parked.
    pub(crate) deadline: Option<Instant>,
    /// Where it stands in the timer list. Kept when the deadline moves back, and moved only once it
    /// comes up: most deadlines are never reached.
    pub(crate) timer: Option<Instant>,
    /// Socket operations since it last gave way to others.
    pub(crate) streak: u32,
}

/// Where a coroutine is.
pub(crate) enum State {
    /// It has not begun, and has no stack yet.
    Dormant(Body),
    Suspended(Fiber),
    Running,
}

impl Task {
    pub(crate) fn new(name: Arc<str>, body: Body, reserved: bool) -> Self {
        Self {
            state: State::Dormant(body),
            reserved,
            name,
            parked: false,
            unparked: false,
            deadline: None,
            timer: None,
            streak: 0,
        }
    }
}

/// The coroutines of a worker, by key.
#[derive(Default)]
pub(crate) struct Tasks {
    places: Vec<Place>,
    free: Vec<u32>,
}

struct Place {
    round: u32,
    task: Option<Task>,
}

impl Tasks {
    pub(crate) fn insert(&mut self, task: Task) -> Key {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.task = Some(task);
            return Key {
                index,
                round: place.round,
            };
        }
        let index = u32::try_from(self.places.len()).expect("fewer coroutines than 2^32");
        self.places.push(Place {
            round: 0,
            task: Some(task),
        });
        Key { index, round: 0 }
    }

    /// The coroutine, if it has not ended.
    pub(crate) fn get(&mut self, key: Key) -> Option<&mut Task> {
        let place = self.places.get_mut(key.index as usize)?;
        place.task.as_mut().filter(|_| place.round == key.round)
    }

    /// The coroutine that has this place now.
    pub(crate) fn at(&mut self, index: u32) -> Option<(Key, &mut Task)> {
        let place = self.places.get_mut(index as usize)?;
        let round = place.round;
        place.task.as_mut().map(|task| (Key { index, round }, task))
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Task> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.round != key.round {
            return None;
        }
        let task = place.task.take()?;
        place.round = place.round.wrapping_add(1);
        self.free.push(key.index);
        Some(task)
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        Task::new("test".into(), Box::new(|| ()), false)
    }

    #[test]
    fn a_key_is_void_once_its_coroutine_has_ended() {
        let mut tasks = Tasks::default();
        let first = tasks.insert(task());
        assert!(tasks.get(first).is_some());
        assert!(tasks.remove(first).is_some());
        let second = tasks.insert(task());
        assert_eq!(first.index, second.index, "the place is used again");
        assert!(tasks.get(first).is_none());
        assert!(tasks.remove(first).is_none());
        assert_eq!(tasks.len(), 1);
        assert!(tasks.get(second).is_some());
    }
}
