//! What happens when a coroutine runs out of stack: a message that names it and the remedy, then
//! an abort. Without it there would be a bare SIGSEGV.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt::{self, Write};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use super::slab::Layout;
use crate::join::quietly;
use crate::task::Hold;
use crate::task_name::Shared;

thread_local! {
    // Without destructors and with constant initialisers: access is a plain load, as a signal
    // handler needs it to be.
    static LAYOUT: Cell<Option<Layout>> = const { Cell::new(None) };
    /// The name of the coroutine that runs on this thread, alive for as long as it runs.
    static RUNNING: Cell<Option<*const Shared>> = const { Cell::new(None) };
}

/// Says where the guards of this thread's stacks are.
pub(crate) fn guard(layout: Layout) {
    LAYOUT.set(Some(layout));
}

/// Says what runs on this thread from now on.
pub(crate) fn set_running(name: Option<*const Shared>) {
    RUNNING.set(name);
}

/// Catches SIGSEGV, once for the process. What is not an overflow of a coroutine is left to the
/// handler that was there before, which is usually the standard library's.
///
/// It runs on the signal stack that the standard library gives to each thread that it starts.
pub(crate) fn install() {
    BEFORE.get_or_init(|| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeroes are a valid sigaction.
        let new = unsafe { action.assume_init_mut() };
        new.sa_sigaction = on_segv as *const () as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: both pointers are valid, and `on_segv` has the signature that SA_SIGINFO asks for
        // and does only what a signal handler may do.
        unsafe { libc::sigaction(libc::SIGSEGV, new, before.as_mut_ptr()) };
        // SAFETY: zeroed, or written by the call.
        unsafe { before.assume_init() }
    });
}

static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

extern "C" fn on_segv(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to a handler with SA_SIGINFO.
    let info_ref = unsafe { &*info };
    // SAFETY: for SIGSEGV it carries an address.
    let address = unsafe { info_ref.si_addr() }.addr();
    if let Some(layout) = LAYOUT.get()
        && layout.is_guard(address)
    {
        // SAFETY: the name belongs to the coroutine that runs on this thread right now, which this
        // handler interrupts. The coroutine takes it away from here before it drops it.
        let name = RUNNING.get().map(|name| unsafe { &*name });
        report(name, layout.stack_size());
        // SAFETY: abort is async-signal-safe.
        unsafe { libc::abort() };
    }
    chain(signal, info, context);
}

/// Neither allocates nor locks, if the name does not. What the name does comes last, so that all
/// else has been said by then.
fn report(name: Option<&Shared>, size: usize) {
    let kib = size / 1024;
    let _ = write!(
        Stderr,
        "\na coroutine has overflowed its stack of {kib} KiB\n\
         raise the engine's stack_size, or keep large buffers in a Vec\n"
    );
    if let Some(name) = name {
        // This is another stack than the coroutine's: a switch would mix up the two.
        let _hold = Hold::begin();
        let named = quietly(|| writeln!(Stderr, "it was coroutine '{name}'"));
        if named.is_none() {
            let _ = writeln!(Stderr, "its name panics when it is displayed");
        }
    }
}

/// write(2), and nothing between it and who writes.
struct Stderr;

impl Write for Stderr {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
        Ok(())
    }
}

fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(before) = BEFORE.get() else {
        return default_action(signal);
    };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => default_action(signal),
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a handler with SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: it was installed as a handler without SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// Returning re-executes the instruction that faulted, now under the default action.
fn default_action(signal: libc::c_int) {
    let default = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeroes are a valid sigaction, SIG_DFL; a null pointer says that the old one is
    // not wanted.
    unsafe { libc::sigaction(signal, default.as_ptr(), ptr::null_mut()) };
}
