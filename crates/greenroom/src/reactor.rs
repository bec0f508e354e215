//! Readiness of descriptors: what epoll reports, kept until somebody wants it.
//!
//! Watched edge-triggered and lazily: a descriptor is given to epoll with the first wait for it, by
//! the worker on which that wait happens. Try the system call first; wait after `WouldBlock`.

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
use crate::slab::{Key, Table};
use crate::task_name::TaskName;
use crate::worker::{Worker, WorkerHandle, lock};

/// The epoll data of a worker's own waker.
pub(crate) const WAKER: u64 = u64::MAX;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read or accept, an end of input, or an error.
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

/// Lets coroutines wait for one non-blocking descriptor, and threads as well.
///
/// The descriptor itself belongs to somebody else, who drops this before closing it.
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
    /// The worker that watches it, or null; only ever compared.
    watcher: AtomicPtr<WorkerHandle>,
    /// A read came back short: nothing more is there until the next report. Only a hint, so that
    /// most reads need no lock: who waits because of it looks at what was reported first.
    ///
    /// Set by the worker that watches, and by no other: between the read and this it takes in no
    /// report. Elsewhere one might come in between, and be used up by somebody who leaves something.
    drained: AtomicBool,
    /// A read may come back short while there is more: its peer has sent urgent data, or it is no TCP
    /// connection. A read of a Unix stream ends at a descriptor that was sent along (`SCM_RIGHTS`).
    has_marks: AtomicBool,
    state: Mutex<State>,
}

impl Source {
    /// Whether it is ready for this, as far as is known; which is known once only, unless it is for
    /// good.
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

    /// Whether there is no need to wait. Otherwise a worker watches from now on, and whoever is in the
    /// list before `state` is unlocked hears of what comes.
    fn look(
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
        // On another worker, a report may have come in since the attempt failed, and have woken up
        // somebody who left something. On this one it cannot: no coroutine has run since.
        Ok(!state.is_near(worker) && poll_once(fd, interest, Some(&NOW))?)
    }

    /// Gives the descriptor to the worker's epoll set, unless a worker watches it already.
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
            self.has_marks.store(true, Ordering::Relaxed);
        }
        state.watched = Some((worker.handle.clone(), token));
        let watcher = Arc::as_ptr(&worker.handle).cast_mut();
        self.watcher.store(watcher, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Default)]
struct State {
    /// The worker that watches it, and under which token.
    watched: Option<(Arc<WorkerHandle>, u64)>,
    /// Reported since it was last waited for.
    ready: u8,
    /// Ready for good: the peer has hung up.
    forever: u8,
    waiting: Waiting,
}

impl State {
    fn is_ready(&self, interest: Interest) -> bool {
        (self.ready | self.forever) & interest.bit() != 0
    }

    /// Whether this is the worker that watches.
    fn is_near(&self, worker: &Worker) -> bool {
        (self.watched.as_ref()).is_some_and(|(watching, _)| Arc::ptr_eq(watching, &worker.handle))
    }

    /// A worker's coroutine, as it stands in the list.
    fn waiter(&self, worker: &Worker, key: Key) -> Waiter {
        if self.is_near(worker) {
            Waiter::Near(key)
        } else {
            Waiter::Far(Unparker::Coroutine(worker.handle.clone(), key))
        }
    }
}

/// Somebody who waits.
#[derive(Clone)]
pub(crate) enum Waiter {
    /// A coroutine of the worker that watches the descriptor, and hears of it first.
    Near(Key),
    Far(Unparker),
}

impl Waiter {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Near(key), Self::Near(other)) => key == other,
            (Self::Far(unparker), Self::Far(other)) => unparker.is_same(other),
            _ => false,
        }
    }

    /// To be called by the worker that watches.
    pub(crate) fn unpark(&self, worker: &Worker) {
        match self {
            Self::Near(key) => worker.unpark(*key),
            Self::Far(unparker) => unparker.unpark(),
        }
    }
}

/// Who waits. Nearly always that is one for reading, or one for writing, or one for each, and then
/// it needs no memory of its own.
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

    /// Takes one off the list; `false` if it does not stand there.
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

    /// Takes all who wait for this off the list, and tells `unpark`; `false` if nobody does.
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
    /// For a descriptor that nothing is known of yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until `fd` may be ready, after a system call has failed with `WouldBlock`. Returning
    /// early is allowed: call it again.
    ///
    /// # Errors
    /// * [`io::ErrorKind::TimedOut`] once `deadline` has passed;
    /// * [`io::ErrorKind::ConnectionAborted`] once the engine is being shut down;
    /// * [`io::ErrorKind::ResourceBusy`] in a destructor that runs because of a panic: a coroutine
    ///   that panics cannot give way to others.
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
            if self.source.look(&mut state, &worker, fd, interest)? {
                drop(state);
                // Where the attempt fails for another reason than this one, others run meanwhile.
                worker.count_operation();
                return Ok(());
            }
            let own = state.waiter(&worker, worker.key());
            state.waiting.add(interest, own.clone());
            own
        };
        loop {
            // A cancellation that comes later wakes up everybody who is parked.
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
                // A report took us off the list: it was for everybody who stood there.
                Ok(()) => return Ok(()),
                Err(error) => {
                    state.waiting.remove(&own);
                    return Err(error);
                }
            }
        }
    }

    /// Runs `run` in a new coroutine of this worker, once the descriptor may be ready; until then
    /// there is no stack. `watch` says what of `value` is waited for, and `value` is handed to
    /// `run`, with the error with which [`wait`](Self::wait) would have ended, if any.
    ///
    /// This is how a connection that is silent for long costs next to nothing: end its coroutine
    /// with this instead of waiting in it.
    ///
    /// # Panics
    /// Outside of a coroutine.
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
        // The user's code comes before the lock.
        let name = name.into();
        let (readiness, fd) = watch(&value);
        let source = readiness.source.clone();
        // Under this lock from the look at what is ready to the place in the list.
        let mut state = lock(&source.state);
        let looked = source.look(&mut state, &worker, fd, interest);
        let start_now = !matches!(looked, Ok(false)) || worker.is_cancelled();
        let theirs = source.clone();
        let body = move || {
            let worker = Worker::in_coroutine().expect("a coroutine is running");
            let still_waiting = {
                let mut state = lock(&theirs.state);
                let own = state.waiter(&worker, worker.key());
                state.waiting.remove(&own)
            };
            let result = match looked {
                Err(error) => Err(error),
                Ok(_) if worker.is_cancelled() => Err(cancelled()),
                Ok(_) if still_waiting => Err(timed_out()),
                Ok(_) => Ok(()),
            };
            drop((worker, theirs));
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

    /// An operation has moved bytes. `drained` says that it was a read that found less than it had
    /// room for, so that the next one would find nothing; that is believed of TCP connections only.
    /// Gives way to others after many operations in a row.
    pub fn record_progress(&self, drained: bool) {
        let Some(worker) = Worker::in_coroutine() else {
            return;
        };
        // Unwatched, it would be reported by nobody.
        let source = &self.source;
        let watcher = source.watcher.load(Ordering::Relaxed);
        if drained
            && std::ptr::eq(watcher, Arc::as_ptr(&worker.handle))
            && !source.has_marks.load(Ordering::Relaxed)
        {
            source.drained.store(true, Ordering::Relaxed);
        }
        worker.count_operation();
    }

    /// Whether a read is known to find nothing, so that it is better to [`wait`](Self::wait) at
    /// once. To be asked before the first attempt, and not again after that wait: outside of the
    /// worker that watches, and so in a thread, it may be out of date.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.source.drained.load(Ordering::Relaxed)
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        let watched = lock(&self.source.state).watched.take();
        if let Some((handle, token)) = watched {
            // The kernel forgets the descriptor when it is closed. Until then, and for as long as
            // somebody else has a copy of it, its reports carry a token that is void.
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

/// Asks the kernel; `false` if there was nothing for so long, or a signal came.
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
pub(crate) struct Sources(Table<Arc<Source>>);

impl Sources {
    fn insert(&mut self, source: &Arc<Source>) -> u64 {
        self.0.insert(source.clone()).pack()
    }

    pub(crate) fn remove(&mut self, token: u64) {
        self.0.remove(Key::unpack(token));
    }

    /// Takes in a report, and tells `unpark` who has waited for it.
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
            state.forever = BOTH;
        }
        if flags.contains(EventFlags::RDHUP) {
            state.forever |= Interest::Read.bit();
        }
        let mut ready = state.forever;
        if flags.contains(EventFlags::IN) {
            ready |= Interest::Read.bit();
        }
        if flags.contains(EventFlags::OUT) {
            ready |= Interest::Write.bit();
        }
        if flags.contains(EventFlags::PRI) {
            source.has_marks.store(true, Ordering::Relaxed);
            ready |= Interest::Read.bit();
        }
        if ready & Interest::Read.bit() != 0 {
            source.drained.store(false, Ordering::Relaxed);
        }
        // Everybody who waits tries again; what nobody waits for is kept for who comes next.
        state.ready |= ready;
        for interest in [Interest::Read, Interest::Write] {
            if ready & interest.bit() != 0 && state.waiting.wake(interest, &mut unpark) {
                state.ready &= !interest.bit();
            }
        }
    }

    /// The worker ends: whoever still has one of them may find another worker for it.
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
                // Of the worker itself, no coroutine is left.
                if let Waiter::Far(unparker) = waiter {
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
        "the engine is being shut down",
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
    fn a_token_is_void_once_its_source_is_gone() {
        let mut sources = Sources::default();
        let (one, two) = (Arc::default(), Arc::default());
        let first = sources.insert(&one);
        sources.remove(first);
        let second = sources.insert(&two);
        assert_ne!(first, second);
        let nobody = |_: &Waiter| panic!("nobody waits");
        sources.deliver(first, epoll::EventFlags::IN, nobody);
        assert_eq!(lock(&two.state).ready, 0, "a late report of the first");
        sources.deliver(second, epoll::EventFlags::IN, nobody);
        assert_eq!(lock(&two.state).ready, Interest::Read.bit());
        sources.remove(first);
        assert!(sources.0.iter().next().is_some());
    }

    #[test]
    fn a_hang_up_stays_ready() {
        let mut sources = Sources::default();
        let source = Arc::default();
        let token = sources.insert(&source);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        let nobody = |_: &Waiter| panic!("nobody waits");
        sources.deliver(token, flags, nobody);
        assert_eq!(lock(&source.state).forever, Interest::Read.bit());
        sources.deliver(token, epoll::EventFlags::HUP, nobody);
        assert_eq!(lock(&source.state).forever, BOTH);
    }
}
