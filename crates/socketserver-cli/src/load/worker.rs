//! The loop of one thread: it hands requests out to connections when they are due, sleeps until
//! something is ready, and ends when all that has begun is over.
//!
//! What a connection does with its request is in `exchange.rs`.

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

/// What all workers do.
pub(super) struct Plan {
    pub(super) target: Target,
    pub(super) message: Vec<u8>,
    pub(super) rule: MatchRule,
    pub(super) expected: Expected,
    /// A connection for each request.
    pub(super) churn: bool,
    /// For a request, from when it was due; for a connection; for a server to close.
    pub(super) timeout: Duration,
    pub(super) progress: Progress,
}

pub(super) enum Expected {
    Anything,
    This(Vec<u8>),
    First(OnceLock<Vec<u8>>),
}

/// What others see of the workers, and tell them.
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
    /// Connected, and without a request. One may have been closed since.
    pub(super) ready: VecDeque<usize>,
    /// Not connected, and without a request.
    pub(super) down: VecDeque<usize>,
    /// Whose listener had no room in its backlog.
    pub(super) retry: Vec<usize>,
    /// How many are connecting, and how many of all have something to be waited for.
    pub(super) opening: usize,
    pub(super) busy: usize,
    /// Without a rate, who has failed rests for a moment.
    pub(super) rests: bool,
    /// No more requests begin.
    pub(super) is_over: bool,
    pub(super) in_window: bool,
    pub(super) buf: Box<[u8]>,
    /// To be added to what others see.
    pub(super) unseen: (u64, u64),
    looked: Instant,
    /// When the window began, and what this thread had used by then.
    began: Option<(Instant, CpuUsage)>,
}

/// How many connections are opened at once: fewer than fit into any backlog.
const OPENING: usize = 64;

/// How many events are taken at once.
const EVENTS: usize = 1024;

/// How often those are looked for whose time is over, at least.
const LOOK: Duration = Duration::from_millis(50);

/// When a listener that had no room is asked again.
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

    /// Opens all connections, or fails to; says how many are there.
    pub(super) fn connect(&mut self) -> anyhow::Result<u64> {
        // The kernel may be late by 50 µs otherwise, to save power: prctl(2), `PR_SET_TIMERSLACK`.
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

    /// Puts the load on, until all is over or somebody stops it.
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
            let mut patience = self.hand_out(&mut supply)?;
            if self.is_over && self.busy == 0 {
                self.end_window(Instant::now());
                self.show();
                return Ok(self.tally);
            }
            if !self.retry.is_empty() {
                patience = patience.min(RETRY);
            }
            let moments = [Some(supply.measured_from), supply.end];
            for moment in moments.into_iter().flatten().filter(|&at| at > now) {
                patience = patience.min(moment - now);
            }
            self.wait_and(patience, |worker| worker.hand_out(&mut supply).map(drop))?;
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.plan.progress.stop.load(Ordering::Relaxed)
    }

    /// Begins as many requests as are due and as there are connections for; says how long nothing
    /// more is due.
    fn hand_out(&mut self, supply: &mut RequestSchedule) -> anyhow::Result<Duration> {
        // One that is sent is done at once if no answer is waited for: what has arrived for others is
        // to be looked at all the same.
        let at_most = (self.ready.len() + self.down.len()).clamp(16, 1024);
        for n in 0..at_most {
            // None is left; the first time, it may be the end that is to be seen.
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

    /// Those that were due and waited for a connection for too long.
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

    /// Looks after those for whom nothing will ever be ready.
    fn tend(&mut self, now: Instant) -> anyhow::Result<()> {
        let mut retry = std::mem::take(&mut self.retry);
        // One that was given up meanwhile, and tried again, is there twice.
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
                self.time_is_over(index, now);
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

    fn wait(&mut self, patience: Duration) -> anyhow::Result<()> {
        self.wait_and(patience, |_| Ok(()))
    }

    /// Takes what has become ready, and does something after each of it.
    fn wait_and(
        &mut self,
        patience: Duration,
        mut each: impl FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let patience = Timespec::try_from(patience)?;
        if patience.tv_nsec % 1_000_000 != 0 {
            // What waits here for less than a millisecond is ppoll(2): epoll_wait(2) cannot.
            match poll(
                &mut [PollFd::new(&self.epoll, PollFlags::IN)],
                Some(&patience),
            ) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mut events = [const { MaybeUninit::uninit() }; EVENTS];
        let ready = match epoll::wait(&self.epoll, &mut events, Some(&patience)) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for event in ready {
            let (index, generation) = unpack(event.data.u64());
            // Of a connection that was closed because of an event before it.
            if self.slots[index].generation == generation {
                self.is_ready(index, event.flags)?;
                each(self)?;
            }
        }
        Ok(())
    }
}

/// Which connection it is, and the how-manieth in this place.
pub(super) fn pack(index: usize, generation: u32) -> epoll::EventData {
    epoll::EventData::new_u64((index as u64) << 32 | u64::from(generation))
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of it")]
fn unpack(data: u64) -> (usize, u32) {
    ((data >> 32) as usize, data as u32)
}
