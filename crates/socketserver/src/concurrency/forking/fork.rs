//! `fork(2)` and its signal handling. The only unsafe code of this crate.

#![allow(unsafe_code)]

use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::ptr;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// The signal that ends a child when the server cancels its request or its parent dies. Otherwise
/// only a timer of the process itself sends it (setitimer(2), `ITIMER_VIRTUAL`). No terminal,
/// service manager or operator sends it to all processes of a server, as they do with SIGHUP
/// (reload) and SIGUSR1 (reopen the logs). A parent hardly has a handler for it that would
/// interfere with a child's handler.
pub(crate) const CANCEL_SIGNAL: Signal = Signal::VTALARM;

/// The process in which `fork` has returned.
pub(super) enum Side {
    Parent(Pid),
    Child,
}

/// The error of a fork in a process that has several threads.
#[derive(Debug, thiserror::Error)]
#[error("the process has {0} threads")]
pub(crate) struct ThreadsRunning(pub(crate) usize);

/// Returns the number of threads of the process. The links of `/proc/self/task` are the directory
/// itself, its parent, and one per thread. Without /proc the number is unknown, and this function
/// returns 1.
pub(super) fn thread_count() -> usize {
    match rustix::fs::stat("/proc/self/task") {
        Ok(task) => {
            usize::try_from(task.st_nlink).map_or(1, |links| links.saturating_sub(2).max(1))
        }
        Err(_) => 1,
    }
}

/// Creates a child process.
///
/// # Errors
/// Returns [`ThreadsRunning`] unless the process has exactly one thread, and otherwise the error of
/// `fork(2)`.
pub(super) fn fork() -> io::Result<Side> {
    let threads = thread_count();
    if threads != 1 {
        return Err(io::Error::other(ThreadsRunning(threads)));
    }
    // Otherwise both processes would print the buffered output.
    let _ = io::stdout().flush();
    let parent = rustix::process::getpid();
    // A signal that arrives before the child has reset its dispositions would run a handler of the
    // parent. That handler may write into pipes that both processes share.
    let before = block_signals();
    // SAFETY: fork has no memory-safety preconditions of its own. The danger is a child of a
    // process with several threads: locks of the other threads (the allocator's among them) stay
    // locked in the child. The process has one thread, this one, as counted above. No other thread
    // can appear, because only this one could start it.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        reset_signals();
        // Requested before the check of the parent: if the parent dies in between, the signal or
        // the check detects it.
        let _ = set_parent_process_death_signal(Some(CANCEL_SIGNAL));
        if getppid() != Some(parent) {
            exit(1);
        }
    }
    let error = io::Error::last_os_error();
    if pid == 0 {
        // The parent may have blocked signals to read them from a descriptor. The child must
        // receive them.
        restore_signals(&no_signals());
    } else {
        restore_signals(&before);
    }
    match pid {
        0 => Ok(Side::Child),
        pid => Pid::from_raw(pid)
            .filter(|_| pid > 0)
            .map(Side::Parent)
            .ok_or(error),
    }
}

/// Ends a child without running the exit handlers that the parent registered.
pub(crate) fn exit(code: i32) -> ! {
    let _ = io::stdout().flush();
    // SAFETY: _exit only ends the process; no destructor or exit handler runs, which is the intent.
    unsafe { libc::_exit(code) }
}

fn block_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set it receives, and cannot fail for a valid pointer.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` was initialised above. `before` is valid for writes, and the call writes it
    // because the call cannot fail with SIG_BLOCK and valid pointers.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: the call above has initialised `before`.
    unsafe { before.assume_init() }
}

fn no_signals() -> libc::sigset_t {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set it receives, and cannot fail for a valid pointer.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the call above has initialised `none`.
    unsafe { none.assume_init() }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: `mask` is an initialised set; a null pointer discards the old mask.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}

/// Signals for the parent that a terminal (Ctrl-C, Ctrl-\, or when it closes) or a service manager
/// sends to the whole process group.
const PARENT_SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP];

/// Signals that are sent to the whole process group for other reasons than to end it. They do not
/// end a child if the parent handles them.
const GROUP_SIGNALS: [libc::c_int; 6] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGIO,
    libc::SIGPROF,
    // A write beyond RLIMIT_FSIZE, which then fails: setrlimit(2).
    libc::SIGXFSZ,
];

/// Resets the signal dispositions of a child, as `execve(2)` would. SIGSEGV and SIGBUS keep the
/// handlers by which the Rust runtime reports a stack overflow. The child ignores signals for the
/// parent, and the group signals that the parent handles. The cancel signal gets its default
/// action.
fn reset_signals() {
    for signal in 1..=64 {
        if signal == libc::SIGSEGV || signal == libc::SIGBUS {
            continue;
        }
        let mut now = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null `act` only queries; `now` is valid for writes. Signals that do not exist
        // or belong to the C library fail with EINVAL and leave `now` zeroed, which is a valid
        // sigaction: SIG_DFL, no flags, an empty mask.
        unsafe { libc::sigaction(signal, ptr::null(), now.as_mut_ptr()) };
        // SAFETY: `now` was zeroed, which is a valid value, or written by the kernel.
        let mut action = unsafe { now.assume_init() };
        let wanted = match action.sa_sigaction {
            // nohup(1) also applies to programs that the child executes.
            libc::SIG_IGN if signal == libc::SIGHUP => continue,
            _ if PARENT_SIGNALS.contains(&signal) => {
                ignore_signal as *const () as libc::sighandler_t
            }
            // The parent may have been started with this signal ignored.
            _ if signal == CANCEL_SIGNAL.as_raw() => libc::SIG_DFL,
            libc::SIG_IGN | libc::SIG_DFL => continue,
            _ if GROUP_SIGNALS.contains(&signal) => {
                ignore_signal as *const () as libc::sighandler_t
            }
            _ => libc::SIG_DFL,
        };
        action.sa_sigaction = wanted;
        // SA_RESTART takes effect only where a handler exists: the handler interrupts few system
        // calls.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` is initialised. Its disposition is a kernel default or a function that
        // does nothing, which is async-signal-safe. A null pointer discards the old action.
        unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
    }
}

/// Ignores a signal. Unlike `SIG_IGN`, a handler is not inherited by programs that a child
/// executes. With SIGTERM ignored, a `timeout 1 sleep 60` would not end. execve(2): handled signals
/// are reset, ignored signals are not.
extern "C" fn ignore_signal(_: libc::c_int) {}
