//! Reports a stack overflow of a coroutine: a message with the coroutine's name and the remedy,
//! then an abort. Without the report there would be a bare SIGSEGV.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt::{self, Write};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use super::slab::Layout;
use crate::join::catch_panic;
use crate::task::Hold;
use crate::task_name::Shared;

thread_local! {
    // No destructors and constant initialisers: access is then a plain load, which is safe in a
    // signal handler.
    static LAYOUT: Cell<Option<Layout>> = const { Cell::new(None) };
    /// The name of the coroutine that runs on this thread. The pointer is valid while it runs.
    static RUNNING: Cell<Option<*const Shared>> = const { Cell::new(None) };
}

/// Registers the guards of this thread's stacks.
pub(crate) fn guard(layout: Layout) {
    LAYOUT.set(Some(layout));
}

/// Registers the name of the coroutine that runs on this thread from now on.
pub(crate) fn set_running(name: Option<*const Shared>) {
    RUNNING.set(name);
}

/// Installs a handler for SIGSEGV, once for the process. A fault that is not an overflow of a
/// coroutine goes to the previous handler, which is usually the standard library's.
///
/// The handler runs on the signal stack that the standard library gives to each thread that it
/// starts.
pub(crate) fn install() {
    BEFORE.get_or_init(|| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeroes are a valid sigaction.
        let new = unsafe { action.assume_init_mut() };
        new.sa_sigaction = on_segv as *const () as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: both pointers are valid, and `on_segv` has the signature that SA_SIGINFO requires
        // and calls only functions that a signal handler may call.
        unsafe { libc::sigaction(libc::SIGSEGV, new, before.as_mut_ptr()) };
        // SAFETY: zeroed, or written by the call.
        unsafe { before.assume_init() }
    });
}

static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

extern "C" fn on_segv(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to a handler with SA_SIGINFO.
    let info_ref = unsafe { &*info };
    // SAFETY: the siginfo_t of a SIGSEGV contains an address.
    let address = unsafe { info_ref.si_addr() }.addr();
    if let Some(layout) = LAYOUT.get()
        && layout.is_guard(address)
    {
        // SAFETY: the name belongs to the coroutine that runs on this thread right now, which this
        // handler interrupts. The coroutine clears the pointer before it drops the name.
        let name = RUNNING.get().map(|name| unsafe { &*name });
        report(name, layout.stack_size());
        // SAFETY: abort is async-signal-safe.
        unsafe { libc::abort() };
    }
    chain(signal, info, context);
}

/// Writes the report without allocation or locks, unless the name uses them. The name comes last,
/// so that the rest is already written if the name fails.
fn report(name: Option<&Shared>, size: usize) {
    let kib = size / 1024;
    let _ = write!(
        Stderr,
        "\na coroutine has overflowed its stack of {kib} KiB\n\
         raise the runtime's stack_size, or keep large buffers in a Vec\n"
    );
    if let Some(name) = name {
        // The handler runs on the signal stack: a switch of coroutines would mix up the two stacks.
        let _hold = Hold::begin();
        let written = catch_panic(|| writeln!(Stderr, "it was coroutine '{name}'"));
        if written.is_none() {
            let _ = writeln!(Stderr, "its name panics when it is displayed");
        }
    }
}

/// Standard error by write(2), without a buffer or a lock.
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

/// Restores the default action. Returning then re-executes the faulting instruction under it.
fn default_action(signal: libc::c_int) {
    let default = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeroes are a valid sigaction, SIG_DFL; a null pointer discards the old action.
    unsafe { libc::sigaction(signal, default.as_ptr(), ptr::null_mut()) };
}
