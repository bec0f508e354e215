//! The loop of one thread. It assigns due requests to connections, sleeps until a descriptor is
//! ready, and ends when all started requests have ended.
//!
//! `connection.rs` contains the state of a connection.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::thread::set_current_timer_slack;

use super::connection::{Connection, State};
use super::cpu_usage::CpuUsage;
use super::failure::Kind;
use super::response::MatchRule;
use super::schedule::{NextRequest, RequestSchedule};
use super::stats::Stats;
use super::target::Target;

/// The settings that all workers share.
pub(super) struct Plan {
    pub(super) target: Target,
    pub(super) message: Vec<u8>,
    pub(super) rule: MatchRule,
    pub(super) expected: Expected,
    /// True if each request uses a new connection.
    pub(super) churn: bool,
    /// The timeout of a request (from the time at which it was due), of a connection, and of a
    /// server's close.
    pub(super) timeout: Duration,
    pub(super) progress: Progress,
}

pub(super) enum Expected {
    Anything,
    This(Vec<u8>),
    First(OnceLock<Vec<u8>>),
}

/// The shared state of all workers: counters and flags.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) finished: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) opened: AtomicU64,
    pub(super) stop: Arc<AtomicBool>,
}

pub(super) struct Worker<'a> {
    pub(super) plan: &'a Plan,
    pub(super) tally: Stats,
    pub(super) slots: Vec<Connection>,
    pub(super) epoll: OwnedFd,
    /// Connected slots without a request. The server may have closed some since.
    pub(super) ready: VecDeque<usize>,
    /// Unconnected slots without a request.
    pub(super) down: VecDeque<usize>,
    /// Slots whose listener had a full backlog.
    pub(super) retry: Vec<usize>,
    /// The number of connecting slots; `busy` counts all slots with a pending event.
    pub(super) opening: usize,
    pub(super) busy: usize,
    /// True if a failed slot pauses, which applies without a rate.
    pub(super) rests: bool,
    /// True if no more requests begin.
    pub(super) is_over: bool,
    pub(super) in_window: bool,
    pub(super) buf: Box<[u8]>,
    /// Counts to be added to the shared counters.
    pub(super) unseen: (u64, u64),
    looked: Instant,
    /// The begin of the window, and the CPU usage of this thread at that time.
    began: Option<(Instant, CpuUsage)>,
}

/// The maximum number of connections that are opened at once, fewer than any backlog holds.
const OPENING: usize = 64;

/// The maximum number of events per poll.
const EVENTS: usize = 1024;

/// The maximum interval between two checks for expired deadlines.
const LOOK: Duration = Duration::from_millis(50);

/// The delay before another attempt on a full backlog.
const RETRY: Duration = Duration::from_millis(1);

impl<'a> Worker<'a> {
    pub(super) fn new(plan: &'a Plan, connections: usize) -> anyhow::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            plan,
            tally: Stats::new()?,
            slots: (0..connections).map(|_| Connection::new(now)).collect(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            ready: VecDeque::with_capacity(connections),
            down: VecDeque::with_capacity(connections),
            retry: Vec::new(),
            opening: 0,
            busy: 0,
            rests: false,
            is_over: false,
            in_window: false,
            buf: vec![0; 64 << 10].into(),
            unseen: (0, 0),
            looked: now,
            began: None,
        })
    }

    /// Opens all connections. Returns the number of those that are established.
    pub(super) fn connect(&mut self) -> anyhow::Result<u64> {
        // With the default slack, the kernel may wake the thread 50 µs late to save power:
        // prctl(2), `PR_SET_TIMERSLACK`.
        let _ = set_current_timer_slack(NonZeroU64::new(1000));
        if self.plan.churn {
            self.down.extend(0..self.slots.len());
            return Ok(0);
        }
        let mut next = 0;
        while (next < self.slots.len() || self.opening > 0) && !self.is_stopped() {
            while next < self.slots.len() && self.opening < OPENING {
                self.open(next, Instant::now())?;
                next += 1;
            }
            self.tend(Instant::now())?;
            self.wait(LOOK)?;
        }
        self.tally.connected = self.ready.len() as u64;
        Ok(self.tally.connected)
    }

    /// Generates the load until all requests have ended or the load is stopped.
    pub(super) fn load(mut self, mut supply: RequestSchedule) -> anyhow::Result<Stats> {
        self.rests = !supply.is_open();
        loop {
            let now = Instant::now();
            self.show();
            if self.is_stopped() {
                self.end_window(now);
                return Ok(self.tally);
            }
            self.keep_window(&supply, now);
            self.tend(now)?;
            self.expire(&mut supply, now);
            let mut timeout = self.hand_out(&mut supply)?;
            if self.is_over && self.busy == 0 {
                self.end_window(Instant::now());
                self.show();
                return Ok(self.tally);
            }
            if !self.retry.is_empty() {
                timeout = timeout.min(RETRY);
            }
            let moments = [Some(supply.measured_from), supply.end];
            for moment in moments.into_iter().flatten().filter(|&at| at > now) {
                timeout = timeout.min(moment - now);
            }
            self.wait_and(timeout, |worker| worker.hand_out(&mut supply).map(drop))?;
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.plan.progress.stop.load(Ordering::Relaxed)
    }

    /// Begins due requests on free connections. Returns the time until the next request is due.
    fn hand_out(&mut self, supply: &mut RequestSchedule) -> anyhow::Result<Duration> {
        // A request without an answer is done at once, so the number of requests per call is
        // bounded. Events of other connections must be handled in between.
        let at_most = (self.ready.len() + self.down.len()).clamp(16, 1024);
        for n in 0..at_most {
            // No connection is free. The first iteration still runs, because it may detect the end.
            if n > 0 && self.ready.is_empty() && self.down.is_empty() {
                return Ok(LOOK);
            }
            let now = Instant::now();
            match supply.look(now) {
                NextRequest::Over => {
                    self.end_requests(supply, now);
                    return Ok(LOOK);
                }
                NextRequest::At(due) => return Ok(LOOK.min(due - now)),
                NextRequest::Now(due) => {
                    let free = self.ready.pop_front().or_else(|| self.down.pop_front());
                    let Some(index) = free else {
                        supply.is_held_up(now);
                        return Ok(LOOK);
                    };
                    let measured = supply.take(due);
                    self.begin(index, due, measured, now)?;
                }
            }
        }
        Ok(Duration::ZERO)
    }

    /// Expires requests that were due and waited too long for a connection.
    fn expire(&mut self, supply: &mut RequestSchedule, now: Instant) {
        if !supply.is_open() {
            return;
        }
        while let NextRequest::Now(due) = supply.look(now)
            && now - due > self.plan.timeout
        {
            if supply.take(due) {
                self.unseen.1 += 1;
                self.tally.fail(Kind::Timeout.into());
            }
        }
    }

    fn end_requests(&mut self, supply: &RequestSchedule, now: Instant) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        self.tally.not_sent = supply.overdue(now);
        if self.lingers() {
            for index in 0..self.slots.len() {
                if self.slots[index].state == State::Ready {
                    self.linger(index, now);
                }
            }
        }
    }

    /// Handles slots for which no event will arrive.
    fn tend(&mut self, now: Instant) -> anyhow::Result<()> {
        let mut retry = std::mem::take(&mut self.retry);
        // A slot that was given up and retried in the meantime appears twice.
        retry.sort_unstable();
        retry.dedup();
        for index in retry {
            if self.slots[index].state == State::Opening {
                self.open_again(index, now)?;
            }
        }
        let often = LOOK.min(self.plan.timeout / 10);
        if now.saturating_duration_since(self.looked) < often {
            return Ok(());
        }
        self.looked = now;
        for index in 0..self.slots.len() {
            if self.slots[index].deadline <= now {
                self.handle_timeout(index, now);
            }
        }
        Ok(())
    }

    fn keep_window(&mut self, supply: &RequestSchedule, now: Instant) {
        let is_past = supply.end.is_some_and(|end| now >= end);
        if self.began.is_none() && now >= supply.measured_from {
            self.began = Some((now, CpuUsage::by_this_thread()));
            self.in_window = true;
        }
        if self.in_window && is_past {
            self.end_window(now);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn end_window(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.in_window, false) {
            return;
        }
        let Some((began, before)) = self.began else {
            return;
        };
        let window = now - began;
        let used = CpuUsage::by_this_thread().since(before);
        let share = |time: Duration| time.as_nanos() as f64 / window.as_nanos().max(1) as f64;
        self.tally.window = window;
        self.tally.busiest = share(used.total());
        self.tally.run_queue_delay = used.run_queue_delay.map_or(0.0, share);
        self.tally.used = used;
    }

    fn show(&mut self) {
        let (finished, failed) = std::mem::take(&mut self.unseen);
        let progress = &self.plan.progress;
        if finished > 0 {
            progress.finished.fetch_add(finished, Ordering::Relaxed);
        }
        if failed > 0 {
            progress.failed.fetch_add(failed, Ordering::Relaxed);
        }
    }

    fn wait(&mut self, timeout: Duration) -> anyhow::Result<()> {
        self.wait_and(timeout, |_| Ok(()))
    }

    /// Waits for ready descriptors, and calls a function after each event.
    fn wait_and(
        &mut self,
        timeout: Duration,
        mut each: impl FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let timeout = Timespec::try_from(timeout)?;
        if timeout.tv_nsec % 1_000_000 != 0 {
            // ppoll(2) can wait for less than a millisecond, unlike epoll_wait(2).
            match poll(
                &mut [PollFd::new(&self.epoll, PollFlags::IN)],
                Some(&timeout),
            ) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mut events = [const { MaybeUninit::uninit() }; EVENTS];
        let ready = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for event in ready {
            let (index, generation) = unpack(event.data.u64());
            // The event may belong to a connection that an earlier event closed.
            if self.slots[index].generation == generation {
                self.is_ready(index, event.flags)?;
                each(self)?;
            }
        }
        Ok(())
    }
}

/// Packs the index of a slot and the number of its connection.
pub(super) fn pack(index: usize, generation: u32) -> epoll::EventData {
    epoll::EventData::new_u64((index as u64) << 32 | u64::from(generation))
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of it")]
fn unpack(data: u64) -> (usize, u32) {
    ((data >> 32) as usize, data as u32)
}
