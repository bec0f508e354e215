//! Commands to a serving loop, and the phase it is in. Giving a command is two atomic steps and a
//! `write(2)`: it never blocks, works from a signal handler, and works from a forked child.

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
/// New clients should go elsewhere.
const LAME: u32 = 1 << 4;
/// The drain's time is over.
const FORCED: u32 = 1 << 5;

/// What a child asks of its parent: flags do not cross a fork, but the eventfd does. Units of a kind
/// that are too many for their bits are taken for one of the next kind, which asks for more.
const WAKE_UNIT: u64 = 1;
const CHILD_STOP_UNIT: u64 = 1 << 32;
const CHILD_DRAIN_UNIT: u64 = 1 << 48;
/// Last, as nothing but a drain can be taken for it, and a server that drains is not ready anyway.
const CHILD_LAME_UNIT: u64 = 1 << 56;

/// How long a drain may take that was asked for without a time.
pub(crate) const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

pub(crate) struct Lifecycle {
    /// Phase and pending commands in one word, so that a stop and the end of the loop it stops
    /// cannot pass each other.
    word: AtomicU32,
    waker: OwnedFd,
    /// The waker of a process that took the server over from the one that made it: the two must not
    /// hear each other's commands.
    own_waker: OnceLock<OwnedFd>,
    /// Readable for good once a drain was asked for: how forked children hear of it. Of models
    /// without children, nobody does.
    drain_event: Option<OwnedFd>,
    /// Readable while the server is lame, for the same children.
    lame_bell: Option<OwnedFd>,
    /// The process that serves, or is going to.
    owner: AtomicU32,
    /// The thread that serves.
    thread: AtomicU32,
    base: Instant,
    /// When a drain was asked for first, in milliseconds since `base`.
    drain_from: AtomicU64,
    /// When a drain must be over, in milliseconds since `base`.
    drain_until: AtomicU64,
    state_lock: Mutex<()>,
    changed: Condvar,
}

/// What the loop is asked to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Commands {
    pub(crate) stop: bool,
    /// Close for good, and be done by then.
    pub(crate) drain: Option<Instant>,
}

impl Lifecycle {
    /// `forks` is whether children are to hear of a drain.
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

    /// Whether this is the process that serves, and not a child of it.
    pub(crate) fn is_owner(&self) -> bool {
        this_process() == self.owner.load(Ordering::Relaxed)
    }

    /// The process that serves, or is going to.
    #[cfg(feature = "metrics")]
    pub(crate) fn owner(&self) -> u32 {
        self.owner.load(Ordering::Relaxed)
    }

    /// Whether this is the thread that serves.
    pub(crate) fn is_serving_thread(&self) -> bool {
        this_thread() == self.thread.load(Ordering::Relaxed)
    }

    /// Makes this process the one that serves, if it is a fork of the one that made the server: a
    /// daemon binds first. Only the first such fork can.
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

    /// Wakes the loop up, to look around.
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
        // Asked of a server that was stopped, a stop is the case already: it must not stick and
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
        // The earliest deadline holds: a second call can only hurry the first.
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
                    // A read takes all of the count.
                    false => rustix::io::read(event, &mut [0_u8; 8]),
                };
            }
            // There is something to tell of.
            self.wake();
        }
    }

    /// The drain's time is over, and what was left is being cut.
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

    /// Begins to serve; `false` if the server is closed.
    pub(crate) fn enter(&self) -> bool {
        self.thread.store(this_thread(), Ordering::Relaxed);
        let before = self.word.load(Ordering::SeqCst) & PHASE;
        // A stop that a child asked for after the server was stopped is the case already.
        self.apply_child_commands(before == NEW);
        let entered = self
            .word
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                (word & PHASE != CLOSED).then_some((word & !PHASE) | SERVING)
            });
        entered.is_ok()
    }

    /// Ends serving, as that was asked for; the server can serve again unless it is `closed`.
    pub(crate) fn leave(&self, closed: bool) {
        self.settle(if closed { CLOSED } else { STOPPED }, STOP);
    }

    /// Ends serving for now. A stop that was asked for meanwhile is still to come.
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

    /// The waker is ready: takes in what arrived.
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

    /// What is asked for.
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

    /// When a drain was asked for.
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

    /// Whether clients should go elsewhere. Of a forked child's parent, what is the case now.
    pub(crate) fn is_lame(&self) -> bool {
        match self.lame_bell.as_ref().filter(|_| !self.is_owner()) {
            None => self.word.load(Ordering::SeqCst) & LAME != 0,
            Some(event) => {
                let mut fds = [PollFd::new(event, PollFlags::IN)];
                matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
            }
        }
    }

    /// In a forked child: whether the parent drains. Waits for that or for `other` to be ready, if
    /// there is one, but for no longer than `until`.
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
                // By a signal that is for the parent: poll(2) is never restarted. Whoever went on
                // from here to wait for the peer alone would not hear the bell.
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// In a forked child that waits for `input`: sleeps until there is some, or the time is over, or
    /// the parent begins to drain. Elsewhere a drain is told in other ways, and this does nothing.
    pub(crate) fn wait_readable_or_drain(&self, input: BorrowedFd<'_>, until: Option<Instant>) {
        self.drain_event_is_set(Some((input, until)));
    }

    /// Waits until nobody serves and no stop is pending.
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
        // The only failure is a full counter, and then the loop is being woken up already.
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
    fn a_stop_before_serving_sticks_and_one_after_it_does_not() {
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
    fn a_stop_between_two_requests_is_kept() {
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
    fn a_drain_before_serving_is_waited_for() {
        let life = Lifecycle::new(false).unwrap();
        life.drain(Duration::from_secs(1));
        assert!(!life.wait(Some(Duration::from_millis(1))));
        assert!(life.draining_since().unwrap() <= Instant::now());
    }

    #[test]
    fn the_earliest_drain_deadline_holds_and_closing_is_final() {
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
    fn the_state_follows_the_word() {
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
    fn what_children_ask_for_is_told_apart() {
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
