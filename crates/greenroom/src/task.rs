//! The state of a coroutine, and the switch into it and out of it.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ptr;
use std::time::Instant;

use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::stack::SlabStack;
use crate::task_name::TaskName;

/// The body of a coroutine. It catches panics, so that it never unwinds.
pub(crate) type Body = Box<dyn FnOnce()>;

type Suspender = Yielder<(), ()>;

/// A coroutine and its stack.
///
/// Dropping a fiber that has not ended leaves it suspended for good, with its stack and all values
/// on it. Unwinding it by force would run destructors that may want to suspend.
pub(crate) struct Fiber {
    coroutine: ManuallyDrop<Coroutine<(), (), (), SlabStack>>,
    /// The suspender of the coroutine; null until it has run.
    suspender: *const Suspender,
}

thread_local! {
    /// The suspender of the coroutine that runs on this thread; null if none does.
    static SUSPENDER: Cell<*const Suspender> = const { Cell::new(ptr::null()) };
    /// True while user code runs on this thread at a point where a switch would be unsound. It has
    /// no destructor and a constant initialiser, because a signal handler sets it.
    static HELD: Cell<bool> = const { Cell::new(false) };
}

/// Returns true if the coroutine that runs on this thread may suspend. It may not while it panics,
/// because the other coroutines of the thread would count as panicking, too. It may not while it is
/// [held](Hold) either.
pub(crate) fn may_suspend() -> bool {
    !HELD.get() && !std::thread::panicking()
}

/// Prevents the running coroutine from suspending until dropped: its waits are refused, as if it
/// were panicking.
pub(crate) struct Hold {
    before: bool,
}

impl Hold {
    pub(crate) fn begin() -> Self {
        Self {
            before: HELD.replace(true),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        HELD.set(self.before);
    }
}

impl Fiber {
    /// Creates a coroutine that runs `body` and then `last`.
    pub(crate) fn new(stack: SlabStack, body: Body, last: fn()) -> Self {
        let coroutine = Coroutine::with_stack(stack, move |suspender: &Suspender, ()| {
            SUSPENDER.set(suspender);
            body();
            last();
        });
        Self {
            coroutine: ManuallyDrop::new(coroutine),
            suspender: ptr::null(),
        }
    }

    /// Runs the coroutine until it suspends or ends. Returns true if it ended.
    pub(crate) fn resume(&mut self) -> bool {
        SUSPENDER.set(self.suspender);
        let result = self.coroutine.resume(());
        self.suspender = SUSPENDER.replace(ptr::null());
        matches!(result, CoroutineResult::Return(()))
    }

    /// Returns the stack of a coroutine that has ended.
    ///
    /// # Panics
    /// Panics if the coroutine has not ended.
    pub(crate) fn into_stack(self) -> SlabStack {
        ManuallyDrop::into_inner(self.coroutine).into_stack()
    }
}

/// Switches from the coroutine that runs on this thread to its worker.
pub(crate) fn suspend() {
    let suspender = SUSPENDER.get();
    assert!(!suspender.is_null(), "suspended outside of a coroutine");
    // SAFETY: the pointer is set while, and only while, the coroutine that it belongs to runs on
    // this thread: the coroutine itself sets it when it starts, `resume` sets it when the coroutine
    // continues, and `resume` clears it when it returns. The yielder lives on that coroutine's
    // stack, below all of its frames, for as long as it runs; and a coroutine never runs on another
    // thread, because neither it nor this pointer is `Send`.
    unsafe { (*suspender).suspend(()) };
}

/// One coroutine, as its worker sees it.
pub(crate) struct Task {
    pub(crate) state: State,
    /// True if one of the worker's stacks is reserved for it or in use by it.
    pub(crate) reserved: bool,
    /// `Some` until the coroutine drops it as its last action. Dropping it may run user code.
    pub(crate) name: Option<TaskName>,
    /// True if it waits and is not in the run queue.
    pub(crate) parked: bool,
    /// True if it was unparked since it last checked.
    pub(crate) unparked: bool,
    /// The latest time at which it wants to be woken up while it is parked.
    pub(crate) deadline: Option<Instant>,
    /// The time of its entry in the timer list. The entry stays when the deadline is moved to a
    /// later time, and is moved only when it fires: most deadlines are never reached.
    pub(crate) timer: Option<Instant>,
    /// The result of the datagram that it has queued for its worker to send.
    pub(crate) sent: Option<rustix::io::Result<()>>,
}

/// The state of a coroutine.
pub(crate) enum State {
    /// It has not begun and has no stack yet.
    Dormant(Body),
    Suspended(Fiber),
    Running,
}

impl Task {
    pub(crate) fn new(name: TaskName, body: Body, reserved: bool) -> Self {
        Self {
            state: State::Dormant(body),
            reserved,
            name: Some(name),
            parked: false,
            unparked: false,
            deadline: None,
            timer: None,
            sent: None,
        }
    }
}
