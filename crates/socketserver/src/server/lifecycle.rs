//! Commands to the accept loop, and its phase. A command is two atomic operations and a `write(2)`:
//! it never blocks, works in a signal handler, and works in a forked child.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::state::ServerState;
use crate::process::{this_process, this_thread};

const PHASE: u32 = 0b11;
const NEW: u32 = 0;
const SERVING: u32 = 1;
const STOPPED: u32 = 2;
const CLOSED: u32 = 3;
const STOP: u32 = 1 << 2;
const DRAIN: u32 = 1 << 3;
/// The server is a lame duck.
const LAME: u32 = 1 << 4;
/// The drain's deadline has passed.
const FORCED: u32 = 1 << 5;

/// Commands of a child to its parent. Flags do not cross a fork, but the eventfd does. If the units
/// of a kind overflow their bits, they count as one of the next kind, which is a stronger command.
const WAKE_UNIT: u64 = 1;
const CHILD_STOP_UNIT: u64 = 1 << 32;
const CHILD_DRAIN_UNIT: u64 = 1 << 48;
/// The highest kind, because only a drain can be taken for it, and a draining server is not ready
/// anyway.
const CHILD_LAME_UNIT: u64 = 1 << 56;

/// The time limit of a drain that was requested without one.
pub(crate) const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

pub(crate) struct Lifecycle {
    /// The phase and the pending commands in one word, so that a stop and the end of the loop that
    /// it stops cannot miss each other.
    word: AtomicU32,
    waker: OwnedFd,
    /// The waker of a process that took the server over from its maker. The two processes must not
    /// receive each other's commands.
    own_waker: OnceLock<OwnedFd>,
    /// Readable for good once a drain was requested, so that forked children notice the drain.
    /// `None` for models without children.
    drain_event: Option<OwnedFd>,
    /// Readable while the server is a lame duck, for the same children.
    lame_bell: Option<OwnedFd>,
    /// The process that serves, or is going to.
    owner: AtomicU32,
    /// The thread that serves.
    thread: AtomicU32,
    base: Instant,
    /// The time of the first drain request, in milliseconds since `base`.
    drain_from: AtomicU64,
    /// The deadline of the drain, in milliseconds since `base`.
    drain_until: AtomicU64,
    state_lock: Mutex<()>,
    changed: Condvar,
}

/// The pending commands of the accept loop.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Commands {
    pub(crate) stop: bool,
    /// Close for good, until this time.
    pub(crate) drain: Option<Instant>,
}

impl Lifecycle {
    /// Creates the state. With `forks`, children are notified of a drain.
    pub(crate) fn new(forks: bool) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let drain_event = forks.then(|| eventfd(0, flags)).transpose()?;
        let lame_bell = forks.then(|| eventfd(0, flags)).transpose()?;
        Ok(Self {
            word: AtomicU32::new(NEW),
            waker: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            own_waker: OnceLock::new(),
            drain_event,
            lame_bell,
            owner: AtomicU32::new(this_process()),
            thread: AtomicU32::new(0),
            base: Instant::now(),
            drain_from: AtomicU64::new(u64::MAX),
            drain_until: AtomicU64::new(u64::MAX),
            state_lock: Mutex::new(()),
            changed: Condvar::new(),
        })
    }

    /// Returns true if this process serves, and is not a child of the serving process.
    pub(crate) fn is_owner(&self) -> bool {
        this_process() == self.owner.load(Ordering::Relaxed)
    }

    /// Returns the process that serves, or is going to.
    #[cfg(feature = "metrics")]
    pub(crate) fn owner(&self) -> u32 {
        self.owner.load(Ordering::Relaxed)
    }

    /// Returns true if this thread serves.
    pub(crate) fn is_serving_thread(&self) -> bool {
        this_thread() == self.thread.load(Ordering::Relaxed)
    }

    /// Makes this process the serving process, if it is a fork of the process that made the server.
    /// A daemon binds first and then forks. Only the first such fork succeeds.
    pub(crate) fn take_over(&self) -> io::Result<()> {
        if self.is_owner() {
            return Ok(());
        }
        let own = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        if self.own_waker.set(own).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it has served in another process that this one was forked from",
            ));
        }
        self.owner.store(this_process(), Ordering::Relaxed);
        Ok(())
    }

    /// Wakes the accept loop.
    pub(crate) fn wake(&self) {
        self.write(WAKE_UNIT);
    }

    pub(crate) fn stop(&self) {
        if !self.is_owner() {
            return self.write(CHILD_STOP_UNIT);
        }
        self.stop_here();
    }

    fn stop_here(&self) {
        // A stopped server is stopped already. The command must not stay pending, because it would
        // end the next `serve_forever`.
        let set = self
            .word
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                (word & PHASE != STOPPED && word & PHASE != CLOSED).then_some(word | STOP)
            });
        if set.is_ok() {
            self.wake();
        }
    }

    pub(crate) fn drain(&self, timeout: Duration) {
        if !self.is_owner() {
            return self.write(CHILD_DRAIN_UNIT);
        }
        self.drain_here(timeout);
    }

    fn drain_here(&self, timeout: Duration) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1);
        let now = self.base.elapsed();
        self.drain_from.fetch_min(millis(now), Ordering::SeqCst);
        // The earliest deadline applies: a second call can only shorten the drain.
        let until = millis(now.saturating_add(timeout));
        self.drain_until.fetch_min(until, Ordering::SeqCst);
        self.word.fetch_or(DRAIN, Ordering::SeqCst);
        if let Some(event) = &self.drain_event {
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
        self.wake();
    }

    pub(crate) fn set_lame(&self, lame: bool) {
        if self.is_owner() {
            self.set_lame_here(lame);
        } else if lame {
            self.write(CHILD_LAME_UNIT);
        }
    }

    fn set_lame_here(&self, lame: bool) {
        let before = if lame {
            self.word.fetch_or(LAME, Ordering::SeqCst)
        } else {
            self.word.fetch_and(!LAME, Ordering::SeqCst)
        };
        if (before & LAME != 0) != lame {
            if let Some(event) = &self.lame_bell {
                let _ = match lame {
                    true => rustix::io::write(event, &1_u64.to_ne_bytes()),
                    // A read resets the whole counter.
                    false => rustix::io::read(event, &mut [0_u8; 8]),
                };
            }
            // The loop reports the changed state.
            self.wake();
        }
    }

    /// Records that the drain's deadline has passed and the remaining requests are being cancelled.
    pub(crate) fn force(&self) {
        self.word.fetch_or(FORCED, Ordering::SeqCst);
    }

    pub(crate) fn state(&self) -> ServerState {
        let word = self.word.load(Ordering::SeqCst);
        match word & PHASE {
            CLOSED => ServerState::Closed,
            _ if word & FORCED != 0 => ServerState::Terminating,
            _ if word & DRAIN != 0 => ServerState::Draining,
            STOPPED => ServerState::Stopped,
            SERVING if word & LAME != 0 => ServerState::LameDuck,
            SERVING => ServerState::Serving,
            _ => ServerState::Bound,
        }
    }

    /// Begins to serve. Returns false if the server is closed.
    pub(crate) fn enter(&self) -> bool {
        self.thread.store(this_thread(), Ordering::Relaxed);
        let before = self.word.load(Ordering::SeqCst) & PHASE;
        // A child's stop that arrived after the server had stopped is already fulfilled.
        self.apply_child_commands(before == NEW);
        let entered = self
            .word
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                (word & PHASE != CLOSED).then_some((word & !PHASE) | SERVING)
            });
        entered.is_ok()
    }

    /// Ends serving after a command. The server can serve again unless it is `closed`.
    pub(crate) fn leave(&self, closed: bool) {
        self.settle(if closed { CLOSED } else { STOPPED }, STOP);
    }

    /// Ends serving for now. A stop that arrived during this time stays pending.
    pub(crate) fn pause(&self) {
        self.settle(NEW, 0);
    }

    fn settle(&self, phase: u32, done: u32) {
        let _ = self
            .word
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                let phase = if word & PHASE == CLOSED {
                    CLOSED
                } else {
                    phase
                };
                Some((word & !PHASE & !done) | phase)
            });
        drop(
            self.state_lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.changed.notify_all();
    }

    /// Reads the waker, and applies the commands of children.
    pub(crate) fn on_wakeup(&self) {
        self.apply_child_commands(true);
    }

    fn apply_child_commands(&self, may_stop: bool) {
        let units = self.read();
        if units >= CHILD_LAME_UNIT {
            self.set_lame_here(true);
        }
        if units % CHILD_LAME_UNIT >= CHILD_DRAIN_UNIT {
            self.drain_here(DEFAULT_DRAIN);
        }
        if may_stop && units % CHILD_DRAIN_UNIT >= CHILD_STOP_UNIT {
            self.stop_here();
        }
    }

    /// Returns the pending commands.
    pub(crate) fn commands(&self) -> Commands {
        let word = self.word.load(Ordering::SeqCst);
        let until = Duration::from_millis(self.drain_until.load(Ordering::SeqCst));
        Commands {
            stop: word & STOP != 0,
            drain: (word & DRAIN != 0).then(|| {
                self.base
                    .checked_add(until)
                    .unwrap_or_else(|| far(self.base))
            }),
        }
    }

    /// Returns the time at which a drain was requested.
    pub(crate) fn draining_since(&self) -> Option<Instant> {
        let from = Duration::from_millis(self.drain_from.load(Ordering::SeqCst));
        self.is_draining()
            .then(|| self.base.checked_add(from))
            .flatten()
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.word.load(Ordering::SeqCst) & PHASE == SERVING
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.word.load(Ordering::SeqCst) & DRAIN != 0 || self.drain_event_is_set(None)
    }

    /// Returns true if the server is a lame duck. In a forked child this is the parent's current
    /// state.
    pub(crate) fn is_lame(&self) -> bool {
        match self.lame_bell.as_ref().filter(|_| !self.is_owner()) {
            None => self.word.load(Ordering::SeqCst) & LAME != 0,
            Some(event) => {
                let mut fds = [PollFd::new(event, PollFlags::IN)];
                matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
            }
        }
    }

    /// Returns true, in a forked child, if the parent drains. Waits until then or until `other` is
    /// ready, if given, but not beyond `until`.
    fn drain_event_is_set(&self, other: Option<(BorrowedFd<'_>, Option<Instant>)>) -> bool {
        let Some(event) = self.drain_event.as_ref().filter(|_| !self.is_owner()) else {
            return false;
        };
        loop {
            let left = match other {
                None => Some(Duration::ZERO),
                Some((_, until)) => until.map(|end| end.saturating_duration_since(Instant::now())),
            };
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let event = PollFd::new(event, PollFlags::IN);
            let other = other.map_or_else(
                || event.clone(),
                |(fd, _)| PollFd::from_borrowed_fd(fd, PollFlags::IN),
            );
            let mut fds = [event, other];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => return !fds[0].revents().is_empty(),
                // A signal interrupted poll(2), which is never restarted. The loop must poll again,
                // because a wait for the peer alone would miss the drain.
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Sleeps, in a forked child, until `input` is readable, the time is over, or the parent begins to
    /// drain. In other processes this does nothing, because handlers learn of a drain in other ways.
    pub(crate) fn wait_readable_or_drain(&self, input: BorrowedFd<'_>, until: Option<Instant>) {
        self.drain_event_is_set(Some((input, until)));
    }

    /// Waits until the server does not serve and no stop is pending.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        let settled = || {
            let word = self.word.load(Ordering::SeqCst);
            match word & PHASE {
                SERVING => false,
                NEW => word & (STOP | DRAIN) == 0,
                _ => true,
            }
        };
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut turn = self
            .state_lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while !settled() {
            turn = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                None => self
                    .changed
                    .wait(turn)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return false,
                Some(left) => {
                    let waited = self.changed.wait_timeout(turn, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    fn write(&self, units: u64) {
        // The only error is a full counter, and then the loop is being woken already.
        let _ = rustix::io::write(self, &units.to_ne_bytes());
    }

    fn read(&self) -> u64 {
        let mut units = [0; 8];
        match rustix::io::read(self, &mut units) {
            Ok(_) => u64::from_ne_bytes(units),
            Err(_) => 0,
        }
    }
}

fn far(from: Instant) -> Instant {
    from + Duration::from_secs(365 * 86_400)
}

impl AsFd for Lifecycle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.own_waker.get().unwrap_or(&self.waker).as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_before_serving_stays_pending_and_stop_after_it_does_not() {
        let life = Lifecycle::new(false).unwrap();
        life.stop();
        assert!(life.enter());
        assert!(life.commands().stop);
        life.leave(false);
        life.stop();
        life.stop();
        assert!(life.enter());
        assert!(!life.commands().stop);
    }

    #[test]
    fn stop_between_two_requests_stays_pending() {
        let life = Lifecycle::new(false).unwrap();
        assert!(life.enter());
        life.stop();
        life.pause();
        assert!(life.enter());
        assert!(life.commands().stop);
        life.pause();
        life.stop();
        assert!(
            !life.wait(Some(Duration::from_millis(1))),
            "it is still to come"
        );
    }

    #[test]
    fn wait_covers_a_drain_requested_before_serving() {
        let life = Lifecycle::new(false).unwrap();
        life.drain(Duration::from_secs(1));
        assert!(!life.wait(Some(Duration::from_millis(1))));
        assert!(life.draining_since().unwrap() <= Instant::now());
    }

    #[test]
    fn earliest_drain_deadline_applies_and_closing_is_final() {
        let life = Lifecycle::new(false).unwrap();
        life.drain(Duration::from_secs(1));
        life.drain(Duration::MAX);
        let until = life.commands().drain.unwrap();
        assert!(until <= Instant::now() + Duration::from_secs(1));
        life.leave(true);
        life.leave(false);
        assert!(!life.enter());
        assert!(life.wait(None));
    }

    #[test]
    fn state_follows_the_phase_word() {
        use ServerState::{Bound, Closed, Draining, LameDuck, Serving, Stopped, Terminating};
        let life = Lifecycle::new(false).unwrap();
        assert_eq!(life.state(), Bound);
        life.set_lame(true);
        assert_eq!(life.state(), Bound, "lame is who serves");
        assert!(life.enter());
        assert_eq!(life.state(), LameDuck);
        life.set_lame(false);
        assert_eq!(life.state(), Serving);
        life.pause();
        assert_eq!(life.state(), Bound);
        assert!(life.enter());
        life.leave(false);
        assert_eq!(life.state(), Stopped);
        assert!(life.enter());
        life.set_lame(true);
        life.drain(Duration::ZERO);
        assert_eq!(life.state(), Draining);
        life.force();
        assert_eq!(life.state(), Terminating);
        life.leave(true);
        assert_eq!(life.state(), Closed);
    }

    #[test]
    fn commands_of_children_are_distinguished() {
        let units = |units: u64| {
            let life = Lifecycle::new(false).unwrap();
            assert!(life.enter());
            life.write(units);
            life.on_wakeup();
            let Commands { stop, drain } = life.commands();
            let lame = life.word.load(Ordering::SeqCst) & LAME != 0;
            (stop, drain.is_some(), lame)
        };
        assert_eq!(units(WAKE_UNIT), (false, false, false));
        assert_eq!(units(3 * CHILD_STOP_UNIT), (true, false, false));
        assert_eq!(units(3 * CHILD_DRAIN_UNIT), (false, true, false));
        assert_eq!(units(3 * CHILD_LAME_UNIT), (false, false, true));
        let all = WAKE_UNIT + CHILD_STOP_UNIT + CHILD_DRAIN_UNIT + CHILD_LAME_UNIT;
        assert_eq!(units(all), (true, true, true));
    }

    #[test]
    fn wait_reports_a_timeout() {
        let life = Lifecycle::new(false).unwrap();
        assert!(life.wait(None), "nobody serves");
        assert!(life.enter());
        assert!(!life.wait(Some(Duration::from_millis(1))));
    }
}
