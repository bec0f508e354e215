//! Readiness of descriptors: reports of epoll, stored until a coroutine waits for them.
//!
//! Descriptors are watched edge-triggered and lazily. The first wait adds the descriptor to the
//! epoll set of the worker on which the wait happens. Try the system call first, and wait after
//! `WouldBlock`.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::ipproto;
use rustix::net::sockopt::socket_protocol;

use crate::join::detached;
use crate::park::{Parked, Unparker};
use crate::slab::{Key, Slab};
use crate::task_name::TaskName;
use crate::worker::{Worker, WorkerHandle, lock};

/// The epoll data of a worker's own waker.
pub(crate) const WAKER: u64 = u64::MAX;

/// The operation that a coroutine or thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Input, a connection to accept, an end of input, or an error.
    Read,
    /// Room to write, a completed connect, or an error.
    Write,
}

impl Interest {
    const fn bit(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
        }
    }
}

const BOTH: u8 = Interest::Read.bit() | Interest::Write.bit();

/// Lets coroutines and threads wait for one non-blocking descriptor.
///
/// The caller owns the descriptor, and must drop this value before it closes the descriptor.
///
/// ```
/// use greenroom::{Interest, Readiness};
/// use std::os::fd::AsFd;
///
/// let (near, far) = std::os::unix::net::UnixStream::pair()?;
/// near.set_nonblocking(true)?;
/// let readiness = Readiness::new();
/// (&far).write_all(b"x")?;
/// readiness.wait(near.as_fd(), Interest::Read, None)?;
/// # use std::io::Write;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Default)]
pub struct Readiness {
    source: Arc<Source>,
}

#[derive(Default)]
pub(crate) struct Source {
    /// The worker that watches the descriptor, or null. Only compared, never dereferenced.
    watcher: AtomicPtr<WorkerHandle>,
    /// True if a read returned less than it had room for, so that nothing more is there until the
    /// next report. It is only a hint, which saves most reads a lock. A read that waits because of
    /// the hint checks the stored reports first.
    ///
    /// Only the worker that watches sets it, because that worker takes in no report between the
    /// read and the store. On another worker, a report could arrive in between, and be consumed by
    /// a coroutine that leaves data behind.
    drained: AtomicBool,
    /// True if a short read does not mean that no data is left: the peer has sent urgent data, or the
    /// connection is not TCP. A read of a Unix stream ends at a descriptor that was sent along
    /// (`SCM_RIGHTS`).
    short_reads: AtomicBool,
    state: Mutex<State>,
}

impl Source {
    /// Returns true if the descriptor is known to be ready for `interest`, and consumes that
    /// knowledge unless the descriptor is ready for good.
    fn take(&self, state: &mut State, interest: Interest) -> bool {
        let ready = state.is_ready(interest);
        if ready {
            state.ready &= !interest.bit();
            if interest == Interest::Read {
                self.drained.store(false, Ordering::Relaxed);
            }
        }
        ready
    }

    /// Returns true if there is no need to wait. Otherwise a worker watches from now on, and a
    /// waiter that is added before `state` is unlocked is woken by the next report.
    fn check(
        self: &Arc<Self>,
        state: &mut State,
        worker: &Worker,
        fd: BorrowedFd<'_>,
        interest: Interest,
    ) -> io::Result<bool> {
        if self.take(state, interest) {
            return Ok(true);
        }
        self.watch(state, worker, fd)?;
        // If another worker watches, a report may have arrived since the attempt failed, and have
        // woken up a coroutine that left data behind. On this worker that is impossible, because no
        // coroutine has run since.
        Ok(!state.is_watched_by(worker) && poll_once(fd, interest, Some(&NOW))?)
    }

    /// Adds the descriptor to the worker's epoll set, unless a worker already watches it.
    fn watch(
        self: &Arc<Self>,
        state: &mut State,
        worker: &Worker,
        fd: BorrowedFd<'_>,
    ) -> io::Result<()> {
        if state.watched.is_some() {
            return Ok(());
        }
        let token = worker.sources.borrow_mut().insert(self);
        if let Err(error) = worker.watch(fd, token) {
            worker.sources.borrow_mut().remove(token);
            return Err(error);
        }
        if !is_tcp(fd) {
            self.short_reads.store(true, Ordering::Relaxed);
        }
        state.watched = Some((worker.handle.clone(), token));
        let watcher = Arc::as_ptr(&worker.handle).cast_mut();
        self.watcher.store(watcher, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Default)]
struct State {
    /// The worker that watches the descriptor, and the token.
    watched: Option<(Arc<WorkerHandle>, u64)>,
    /// Interests that were reported as ready and not waited for since.
    ready: u8,
    /// Interests that are ready for good because the peer has hung up.
    closed: u8,
    waiting: Waiting,
}

impl State {
    fn is_ready(&self, interest: Interest) -> bool {
        (self.ready | self.closed) & interest.bit() != 0
    }

    /// Returns true if `worker` watches the descriptor.
    fn is_watched_by(&self, worker: &Worker) -> bool {
        (self.watched.as_ref()).is_some_and(|(watching, _)| Arc::ptr_eq(watching, &worker.handle))
    }

    /// Returns the waiter for a coroutine of `worker`.
    fn waiter(&self, worker: &Worker, key: Key) -> Waiter {
        if self.is_watched_by(worker) {
            Waiter::Local(key)
        } else {
            Waiter::Remote(Unparker::Coroutine(worker.handle.clone(), key))
        }
    }
}

/// A coroutine or thread that waits for a descriptor.
#[derive(Clone)]
pub(crate) enum Waiter {
    /// A coroutine of the worker that watches the descriptor.
    Local(Key),
    /// A coroutine of another worker.
    Remote(Unparker),
}

impl Waiter {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Local(key), Self::Local(other)) => key == other,
            (Self::Remote(unparker), Self::Remote(other)) => unparker.is_same(other),
            _ => false,
        }
    }

    /// Unparks the waiter. Only the worker that watches calls this.
    pub(crate) fn unpark(&self, worker: &Worker) {
        match self {
            Self::Local(key) => worker.unpark(*key),
            Self::Remote(unparker) => unparker.unpark(),
        }
    }
}

/// The waiters of one descriptor. Nearly always there is at most one reader and one writer, and
/// then the list needs no memory of its own.
#[derive(Default)]
struct Waiting {
    reader: Option<Waiter>,
    writer: Option<Waiter>,
    #[expect(
        clippy::box_collection,
        reason = "there are many descriptors, and hardly any of them has others"
    )]
    others: Option<Box<Vec<(Interest, Waiter)>>>,
}

impl Waiting {
    fn slot(&mut self, interest: Interest) -> &mut Option<Waiter> {
        match interest {
            Interest::Read => &mut self.reader,
            Interest::Write => &mut self.writer,
        }
    }

    fn add(&mut self, interest: Interest, waiter: Waiter) {
        let slot = self.slot(interest);
        if slot.is_none() {
            *slot = Some(waiter);
        } else {
            self.others.get_or_insert_default().push((interest, waiter));
        }
    }

    /// Removes a waiter. Returns false if it is not in the list.
    fn remove(&mut self, waiter: &Waiter) -> bool {
        for slot in [&mut self.reader, &mut self.writer] {
            if slot.take_if(|waiting| waiting.is_same(waiter)).is_some() {
                return true;
            }
        }
        let Some(others) = &mut self.others else {
            return false;
        };
        let before = others.len();
        others.retain(|(_, waiting)| !waiting.is_same(waiter));
        others.len() < before
    }

    fn contains(&self, waiter: &Waiter) -> bool {
        self.iter().any(|waiting| waiting.is_same(waiter))
    }

    /// Removes all waiters for `interest` and calls `unpark` for each. Returns false if there are
    /// none.
    fn wake(&mut self, interest: Interest, mut unpark: impl FnMut(&Waiter)) -> bool {
        let first = self.slot(interest).take();
        let mut woken = first.is_some();
        first.iter().for_each(&mut unpark);
        let Some(others) = &mut self.others else {
            return woken;
        };
        for (_, waiter) in others.extract_if(.., |(wanted, _)| *wanted == interest) {
            unpark(&waiter);
            woken = true;
        }
        woken
    }

    fn iter(&self) -> impl Iterator<Item = &Waiter> {
        let others = self.others.iter().flat_map(|others| others.iter());
        let others = others.map(|(_, waiter)| waiter);
        self.reader.iter().chain(&self.writer).chain(others)
    }
}

impl Readiness {
    /// Creates the readiness of a descriptor whose state is unknown.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until `fd` may be ready. Call it after a system call has failed with `WouldBlock`. The
    /// wait may return early: try the system call again, and call this again if needed.
    ///
    /// # Errors
    /// Returns one of these errors:
    /// * [`io::ErrorKind::TimedOut`] if `deadline` has passed;
    /// * [`io::ErrorKind::ConnectionAborted`] if the runtime is being shut down;
    /// * [`io::ErrorKind::ResourceBusy`] in a destructor that runs because of a panic, because a
    ///   coroutine that is panicking cannot wait.
    pub fn wait(
        &self,
        fd: BorrowedFd<'_>,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let Some(worker) = Worker::in_coroutine() else {
            return wait_in_thread(fd, interest, deadline);
        };
        let own = {
            let mut state = lock(&self.source.state);
            if self.source.check(&mut state, &worker, fd, interest)? {
                drop(state);
                // Other coroutines run even if the attempt fails for another reason than
                // `WouldBlock`.
                worker.count_operation();
                return Ok(());
            }
            let own = state.waiter(&worker, worker.key());
            state.waiting.add(interest, own.clone());
            own
        };
        loop {
            // A later cancellation unparks all parked coroutines.
            let parked = if worker.is_cancelled() {
                Err(cancelled())
            } else {
                match worker.park(deadline) {
                    Parked::Unparked => Ok(()),
                    Parked::TimedOut => Err(timed_out()),
                    Parked::Refused => Err(refused()),
                }
            };
            let mut state = lock(&self.source.state);
            match parked {
                // Unparked for another reason.
                Ok(()) if state.waiting.contains(&own) => {}
                // A report removed this waiter: a report wakes all waiters.
                Ok(()) => return Ok(()),
                Err(error) => {
                    state.waiting.remove(&own);
                    return Err(error);
                }
            }
        }
    }

    /// Runs `run` in a new coroutine of this worker once the descriptor may be ready. The coroutine
    /// has no stack until then. `watch` returns the readiness and the descriptor within `value`.
    /// `run` receives `value` and the result with which [`wait`](Self::wait) would have ended.
    ///
    /// A connection that is idle for a long time costs almost nothing this way: end its coroutine
    /// with this call instead of waiting in the coroutine.
    ///
    /// # Panics
    /// Panics outside of a coroutine.
    pub fn when_ready<T: 'static>(
        value: T,
        watch: impl FnOnce(&T) -> (&Self, BorrowedFd<'_>),
        interest: Interest,
        deadline: Option<Instant>,
        name: impl Into<TaskName>,
        run: impl FnOnce(T, io::Result<()>) + 'static,
    ) {
        let Some(worker) = Worker::in_coroutine() else {
            panic!("Readiness::when_ready needs a coroutine to be called by");
        };
        // The conversion is user code, and so runs before the lock is taken.
        let name = name.into();
        let (readiness, fd) = watch(&value);
        let source = readiness.source.clone();
        // Locked from the check of readiness until the waiter is in the list.
        let mut state = lock(&source.state);
        let checked = source.check(&mut state, &worker, fd, interest);
        let start_now = !matches!(checked, Ok(false)) || worker.is_cancelled();
        let body_source = source.clone();
        let body = move || {
            let worker = Worker::in_coroutine().expect("a coroutine is running");
            let still_waiting = {
                let mut state = lock(&body_source.state);
                let own = state.waiter(&worker, worker.key());
                state.waiting.remove(&own)
            };
            let result = match checked {
                Err(error) => Err(error),
                Ok(_) if worker.is_cancelled() => Err(cancelled()),
                Ok(_) if still_waiting => Err(timed_out()),
                Ok(_) => Ok(()),
            };
            drop((worker, body_source));
            run(value, result);
        };
        let key = worker.start_later(name, Box::new(detached(body)), deadline);
        if start_now {
            drop(state);
            worker.unpark(key);
        } else {
            let waiter = state.waiter(&worker, key);
            state.waiting.add(interest, waiter);
        }
    }

    /// Records that an operation has moved bytes. `drained` says that the operation was a read that
    /// returned less than it had room for, so that the next read would find nothing. Yields to
    /// other coroutines after many operations in a row.
    pub fn record_progress(&self, drained: bool) {
        let Some(worker) = Worker::in_coroutine() else {
            return;
        };
        // Without a watcher, no report would ever clear the flag.
        let source = &self.source;
        let watcher = source.watcher.load(Ordering::Relaxed);
        if drained
            && std::ptr::eq(watcher, Arc::as_ptr(&worker.handle))
            && !source.short_reads.load(Ordering::Relaxed)
        {
            source.drained.store(true, Ordering::Relaxed);
        }
        worker.count_operation();
    }

    /// Returns true if a read is known to find nothing, so that it is better to
    /// [`wait`](Self::wait) first. Ask this before the first attempt, and not again after that
    /// wait: outside of the worker that watches, and so in a thread, the answer may be out of date.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.source.drained.load(Ordering::Relaxed)
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        let watched = lock(&self.source.state).watched.take();
        if let Some((handle, token)) = watched {
            // The kernel removes the descriptor from the epoll set when it is closed. Until then,
            // and while another process or a duplicate keeps it open, reports carry a token that no
            // longer resolves.
            handle.forget(token);
        }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.source.state);
        f.debug_struct("Readiness")
            .field("watched", &state.watched.is_some())
            .field("ready", &state.ready)
            .field("waiting", &state.waiting.iter().count())
            .finish_non_exhaustive()
    }
}

fn wait_in_thread(
    fd: BorrowedFd<'_>,
    interest: Interest,
    deadline: Option<Instant>,
) -> io::Result<()> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        if poll_once(fd, interest, timeout.as_ref())? {
            return Ok(());
        }
        if deadline.is_some_and(|at| at <= Instant::now()) {
            return Err(timed_out());
        }
    }
}

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Polls the descriptor. Returns false if the timeout expires or a signal interrupts the call.
fn poll_once(
    fd: BorrowedFd<'_>,
    interest: Interest,
    timeout: Option<&Timespec>,
) -> io::Result<bool> {
    let flags = match interest {
        Interest::Read => PollFlags::IN,
        Interest::Write => PollFlags::OUT,
    };
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a read that is shorter than its buffer has found all there was, up to urgent data.
fn is_tcp(fd: BorrowedFd<'_>) -> bool {
    matches!(socket_protocol(fd), Ok(Some(ipproto::TCP)))
}

/// The descriptors that a worker watches, by token.
#[derive(Default)]
pub(crate) struct Sources(Slab<Arc<Source>>);

impl Sources {
    fn insert(&mut self, source: &Arc<Source>) -> u64 {
        self.0.insert(source.clone()).pack()
    }

    pub(crate) fn remove(&mut self, token: u64) {
        self.0.remove(Key::unpack(token));
    }

    /// Stores a report, and calls `unpark` for each coroutine or thread that waits for it.
    pub(crate) fn deliver(
        &self,
        token: u64,
        flags: epoll::EventFlags,
        mut unpark: impl FnMut(&Waiter),
    ) {
        use epoll::EventFlags;
        let Some(source) = self.0.get(Key::unpack(token)) else {
            return;
        };
        let mut state = lock(&source.state);
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            state.closed = BOTH;
        }
        if flags.contains(EventFlags::RDHUP) {
            state.closed |= Interest::Read.bit();
        }
        let mut ready = state.closed;
        if flags.contains(EventFlags::IN) {
            ready |= Interest::Read.bit();
        }
        if flags.contains(EventFlags::OUT) {
            ready |= Interest::Write.bit();
        }
        if flags.contains(EventFlags::PRI) {
            source.short_reads.store(true, Ordering::Relaxed);
            ready |= Interest::Read.bit();
        }
        if ready & Interest::Read.bit() != 0 {
            source.drained.store(false, Ordering::Relaxed);
        }
        // All waiters try again; readiness without a waiter is kept for the next wait.
        state.ready |= ready;
        for interest in [Interest::Read, Interest::Write] {
            if ready & interest.bit() != 0 && state.waiting.wake(interest, &mut unpark) {
                state.ready &= !interest.bit();
            }
        }
    }

    /// Releases all descriptors because the worker ends. Another worker may watch them later.
    pub(crate) fn abandon(&mut self) {
        let all = std::mem::take(&mut self.0);
        for source in all.iter() {
            let mut state = lock(&source.state);
            state.watched = None;
            source
                .watcher
                .store(std::ptr::null_mut(), Ordering::Relaxed);
            source.drained.store(false, Ordering::Relaxed);
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            for waiter in waiting.iter() {
                // The worker itself has no coroutine left.
                if let Waiter::Remote(unparker) = waiter {
                    unparker.unpark();
                }
            }
        }
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the deadline has passed")
}

fn cancelled() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the runtime is being shut down",
    )
}

fn refused() -> io::Error {
    io::Error::new(
        io::ErrorKind::ResourceBusy,
        "a coroutine that is panicking cannot wait: do not read or write in a destructor, or check \
         std::thread::panicking() first",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_does_not_resolve_after_its_source_is_removed() {
        let mut sources = Sources::default();
        let (one, two) = (Arc::default(), Arc::default());
        let first = sources.insert(&one);
        sources.remove(first);
        let second = sources.insert(&two);
        assert_ne!(first, second);
        let no_waiter = |_: &Waiter| panic!("there is no waiter");
        sources.deliver(first, epoll::EventFlags::IN, no_waiter);
        assert_eq!(
            lock(&two.state).ready,
            0,
            "a late report of the first source"
        );
        sources.deliver(second, epoll::EventFlags::IN, no_waiter);
        assert_eq!(lock(&two.state).ready, Interest::Read.bit());
        sources.remove(first);
        assert!(sources.0.iter().next().is_some());
    }

    #[test]
    fn hang_up_stays_ready() {
        let mut sources = Sources::default();
        let source = Arc::default();
        let token = sources.insert(&source);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        let no_waiter = |_: &Waiter| panic!("there is no waiter");
        sources.deliver(token, flags, no_waiter);
        assert_eq!(lock(&source.state).closed, Interest::Read.bit());
        sources.deliver(token, epoll::EventFlags::HUP, no_waiter);
        assert_eq!(lock(&source.state).closed, BOTH);
    }
}
