//! `fork(2)` itself, and the signals around it. The only unsafe code of this crate.

#![allow(unsafe_code)]

use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::ptr;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// What ends a child that the server cuts, or whose parent has died. Only a timer that a process has
/// set for itself sends it otherwise (setitimer(2), `ITIMER_VIRTUAL`): no terminal, service manager or
/// operator sends it to all processes of a server at once, as they do with SIGHUP (reload) and
/// SIGUSR1 (open the logs anew), and a parent hardly has a use for it that would keep a child from
/// catching it.
pub(crate) const CUT: Signal = Signal::VTALARM;

/// Which of the two processes this is.
pub(super) enum Side {
    Parent(Pid),
    Child,
}

/// Refused: the process has this many threads.
#[derive(Debug, thiserror::Error)]
#[error("the process has {0} threads")]
pub(crate) struct ThreadsRunning(pub(crate) usize);

/// How many threads the process has: the links of `/proc/self/task` are itself, its parent, and
/// one for each. Where /proc is missing nothing is known, and that counts as one.
pub(super) fn threads() -> usize {
    match rustix::fs::stat("/proc/self/task") {
        Ok(task) => {
            usize::try_from(task.st_nlink).map_or(1, |links| links.saturating_sub(2).max(1))
        }
        Err(_) => 1,
    }
}

/// Makes a child that is a copy of this process.
///
/// # Errors
/// [`ThreadsRunning`] unless the process has exactly one thread, and what `fork(2)` reports.
pub(super) fn fork() -> io::Result<Side> {
    let threads = threads();
    if threads != 1 {
        return Err(io::Error::other(ThreadsRunning(threads)));
    }
    // What is buffered would otherwise be printed twice.
    let _ = io::stdout().flush();
    let parent = rustix::process::getpid();
    // A signal that arrives before the child has put its dispositions in order would run a handler
    // of the parent there, which may write into pipes that the two share.
    let before = block_signals();
    // SAFETY: fork has no memory-safety preconditions of its own. The danger is a child of a
    // process with several threads: locks held by the others (the allocator's among them) stay
    // locked in it for ever. The process has one thread, this one, as was just counted; no other
    // can appear, since only this one could start it.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        reset_signals();
        // Asked for before the check: a parent that died in between is noticed by one of the two.
        let _ = set_parent_process_death_signal(Some(CUT));
        if getppid() != Some(parent) {
            exit(1);
        }
    }
    let error = io::Error::last_os_error();
    if pid == 0 {
        // The parent may have blocked some to read them from a descriptor. A child does not, and
        // must be reached by them.
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

/// Ends a child without running what the parent registered for its own exit.
pub(crate) fn exit(code: i32) -> ! {
    let _ = io::stdout().flush();
    // SAFETY: _exit only ends the process; no destructor or exit handler runs, which is the point.
    unsafe { libc::_exit(code) }
}

fn block_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set that it is given, and cannot fail for a valid pointer.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` was initialised above; `before` is a valid place to write to, and is written,
    // as the call cannot fail with SIG_BLOCK and valid pointers.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: the call above has initialised it.
    unsafe { before.assume_init() }
}

fn no_signals() -> libc::sigset_t {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it is given, and cannot fail for a valid
    // pointer.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the call above has initialised it.
    unsafe { none.assume_init() }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: `mask` is an initialised set, and a null pointer says that the old one is not wanted.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}

/// Sent to the whole group, for the parent to act on: by a terminal (Ctrl-C, Ctrl-\, or when it
/// closes) and by service managers.
const FOR_THE_PARENT: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP];

/// Signals that are sent to the whole group for other reasons than to end it. A child of a parent that
/// handles them does not end by them either.
const FOR_THE_GROUP: [libc::c_int; 6] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGIO,
    libc::SIGPROF,
    // A write beyond RLIMIT_FSIZE, which then fails: setrlimit(2).
    libc::SIGXFSZ,
];

/// Gives every signal that has a handler its default action back, as `execve(2)` would, but for
/// those by which the Rust runtime reports a stack overflow; disregards what is for the parent to
/// act on, and what the parent handles and a group is sent; and listens to the one by which the parent ends a child.
fn reset_signals() {
    for signal in 1..=64 {
        if signal == libc::SIGSEGV || signal == libc::SIGBUS {
            continue;
        }
        let mut now = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null `act` only queries; `now` is a valid place to write to. Signals that do
        // not exist or belong to the C library fail with EINVAL and leave it zeroed, which is a
        // valid sigaction: SIG_DFL, no flags, an empty mask.
        unsafe { libc::sigaction(signal, ptr::null(), now.as_mut_ptr()) };
        // SAFETY: it was zeroed, and all zeroes are a valid value, or else written by the kernel.
        let mut action = unsafe { now.assume_init() };
        let wanted = match action.sa_sigaction {
            // nohup(1) holds for whatever is executed, too.
            libc::SIG_IGN if signal == libc::SIGHUP => continue,
            _ if FOR_THE_PARENT.contains(&signal) => disregard as *const () as libc::sighandler_t,
            // It may have been started with this one ignored.
            _ if signal == CUT.as_raw() => libc::SIG_DFL,
            libc::SIG_IGN | libc::SIG_DFL => continue,
            _ if FOR_THE_GROUP.contains(&signal) => disregard as *const () as libc::sighandler_t,
            _ => libc::SIG_DFL,
        };
        action.sa_sigaction = wanted;
        // Has an effect where there is a handler only: it interrupts as little as can be.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` is initialised, and its disposition is one of the kernel's own or a
        // function that does nothing, which is async-signal-safe; a null pointer says that the old
        // one is not wanted.
        unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
    }
}

/// Unlike `SIG_IGN`, this is not inherited by what a child executes: with SIGTERM ignored, a
/// `timeout 1 sleep 60` would not end. execve(2): handled signals are reset, ignored ones are not.
extern "C" fn disregard(_: libc::c_int) {}
