//! A coroutine: its state, and the switch into it and out of it.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ptr;
use std::time::Instant;

use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::stack::SlabStack;
use crate::task_name::TaskName;

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
    /// Code of the user's runs on this thread at a point where a switch would go wrong. Without a
    /// destructor and with a constant initialiser, as a signal handler sets it.
    static HELD: Cell<bool> = const { Cell::new(false) };
}

/// Whether the coroutine that runs on this thread may give way to others. It may not while it
/// panics: the coroutines that run meanwhile would be taken for panicking, too. And it may not
/// while it is [held](Hold).
pub(crate) fn may_suspend() -> bool {
    !HELD.get() && !std::thread::panicking()
}

/// Keeps the coroutine that runs on this thread from suspending, for as long as this lives: its
/// waits are refused, as if it were panicking.
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
    /// `last` is what the coroutine runs after its body.
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
    /// Present until the coroutine drops it, as the last thing that it does: dropping it may run
    /// code of the user's.
    pub(crate) name: Option<TaskName>,
    /// It waits, and nobody has put it into the run queue.
    pub(crate) parked: bool,
    /// Unparked since it last looked.
    pub(crate) unparked: bool,
    /// When it wants to be woken up at the latest, while it is parked.
    pub(crate) deadline: Option<Instant>,
    /// Where it stands in the timer list. Kept when the deadline moves back, and moved only once it
    /// comes up: most deadlines are never reached.
    pub(crate) timer: Option<Instant>,
    /// What came of the datagram that it has left to its worker to send.
    pub(crate) sent: Option<rustix::io::Result<()>>,
}

/// Where a coroutine is.
pub(crate) enum State {
    /// It has not begun, and has no stack yet.
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
