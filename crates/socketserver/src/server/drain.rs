//! The drain: serve the backlog, let requests finish, and cancel the rest.

use std::time::{Duration, Instant};

use super::accept::AcceptResult;
use super::accept_loop::TickResult;
use super::handle::NEWCOMER;
use super::poller::Poller;
use super::{DrainReport, RequestOutcome, Server};

use crate::concurrency::Concurrency;
use crate::event::{Event, Rejection};
use crate::timeouts::earliest;
use crate::transport::Transport;

/// The time that a cancelled handler has to end before it is left behind or killed.
const GRACE: Duration = Duration::from_secs(1);

/// The maximum number of connections that a drain accepts from the backlog, so that new clients
/// cannot delay the close of the listener. It is the default of `net.core.somaxconn` since Linux
/// 5.4.
const BACKLOG: u64 = 4096;

pub(super) struct Drain {
    started: Instant,
    step: Step,
    report: DrainReport,
    /// The kernel adds no further connection to the backlog.
    is_closing: bool,
    /// The time at which connections that came just before the drain are ended; `None` afterwards.
    newcomers_at: Option<Instant>,
}

enum Step {
    /// The backlog is being served.
    Backlog,
    /// The listeners are closed, and requests are ending.
    Finishing,
    /// The deadline has passed and the rest was cancelled. Handlers have until this time to end.
    Cutting(Instant),
    /// Children that did not end were killed. They are reaped until this time.
    Killing(Instant),
}

impl<T: Transport, C: Concurrency> Server<T, C> {
    pub(super) fn drain_tick(
        &mut self,
        poller: &Poller,
        now: Instant,
        until: Instant,
    ) -> Result<TickResult, crate::ServeError> {
        let mut drain = self.progress.drain.take().unwrap_or_else(|| {
            let live = self.shared.active();
            let timeout = until.saturating_duration_since(now);
            self.shared.emit(&Event::DrainStarted { live, timeout });
            self.shared.end_idle_input();
            // A sequential server may have been busy since the request for the drain.
            let started = self.shared.lifecycle.draining_since().unwrap_or(now);
            Drain {
                started,
                is_closing: false,
                newcomers_at: started.checked_add(NEWCOMER),
                step: Step::Backlog,
                report: DrainReport::default(),
            }
        });
        self.rejections.expire(now);
        if drain.newcomers_at.is_some_and(|at| at <= now) {
            drain.newcomers_at = None;
            self.shared.end_idle_input();
        }
        if matches!(drain.step, Step::Backlog) {
            if now < until {
                for listener in &mut self.listeners {
                    listener.mark_ready();
                    // The flag may be out of date, so only an accept can tell.
                    listener.empty = false;
                }
                let taken = match self.accept(poller, now)? {
                    AcceptResult::InChild(task) => return Ok(TickResult::InChild(task)),
                    AcceptResult::Some(n) => n as u64,
                };
                drain.report.queued += taken;
                let empty = self.listeners.iter().all(|listener| listener.empty);
                let all_taken =
                    self.progress.pending.is_none() && self.progress.queue.is_empty() && empty;
                if all_taken && !drain.is_closing {
                    drain.is_closing = true;
                    for listener in &self.listeners {
                        T::ignore_newcomers(&listener.listener);
                    }
                    // Runs once more, for connections that have arrived since.
                    self.progress.drain = Some(drain);
                    return Ok(TickResult::Sleep(Some(now)));
                }
                if !all_taken && drain.report.queued < BACKLOG {
                    let again = self.arm(poller, now)?;
                    let wake_at = match again {
                        // Only an accept that returns nothing proves that the backlog is empty.
                        None if taken > 0 && self.progress.pending.is_none() => now,
                        again => again.map_or(until, |again| again.min(until)),
                    };
                    let wake_at = earliest(Some(wake_at), drain.newcomers_at);
                    self.shared.drain_goes_on(drain.report);
                    self.progress.drain = Some(drain);
                    return Ok(TickResult::Sleep(wake_at));
                }
            } else {
                drain.report.refused += self.refuse_backlog();
            }
            let waiting = self.progress.pending.take();
            let mut waiting: Vec<_> = waiting.into_iter().collect();
            waiting.extend(std::iter::from_fn(|| self.progress.queue.next()));
            for job in waiting {
                self.refuse(job, &Rejection::Draining);
                drain.report.refused += 1;
            }
            self.shared.emit(&Event::DrainBacklogTaken {
                queued: drain.report.queued,
                refused: drain.report.refused,
            });
            for mut listener in self.listeners.drain(..) {
                listener.disarm(poller);
                let address = listener.address.clone();
                drop(listener);
                self.shared
                    .emit(&Event::ListenerClosed { address: &address });
            }
            drain.step = Step::Finishing;
        }
        let wake_at = self.settle(&mut drain, Instant::now(), until);
        if wake_at.is_some() {
            let wake_at = earliest(wake_at, drain.newcomers_at);
            self.shared.drain_goes_on(drain.report);
            self.progress.drain = Some(drain);
            return Ok(TickResult::Sleep(earliest(
                wake_at,
                self.rejections.wake_at(),
            )));
        }
        drain.report.elapsed = drain.started.elapsed();
        self.progress.closed = true;
        self.shared.drained(drain.report);
        Ok(TickResult::Done(RequestOutcome::Stopped))
    }

    /// Waits for active requests and cancels them at the deadline. Returns `None` once the drain is
    /// done.
    fn settle(&mut self, drain: &mut Drain, now: Instant, until: Instant) -> Option<Instant> {
        self.shared.request_wakeup();
        let live = self.shared.active();
        if live == 0 || !self.concurrency.is_waited_for() {
            self.count(drain);
            return None;
        }
        match drain.step {
            Step::Backlog | Step::Finishing if now < until => Some(until),
            Step::Backlog | Step::Finishing => {
                self.count(drain);
                drain.report.cancelled += live as u64;
                drain.step = Step::Cutting(now + GRACE);
                self.shared.drain_goes_on(drain.report);
                self.shared.lifecycle.force();
                self.shared.report_state();
                self.shared.emit(&Event::DrainDeadlineReached { live });
                self.shared.cancel_all();
                Some(now + GRACE)
            }
            Step::Cutting(end) | Step::Killing(end) if now < end => Some(end),
            Step::Cutting(_) if self.concurrency.kill_children() => {
                drain.step = Step::Killing(now + GRACE);
                self.shared.emit(&Event::DrainKilled { live });
                Some(now + GRACE)
            }
            Step::Cutting(_) | Step::Killing(_) => {
                drain.report.abandoned = live as u64;
                None
            }
        }
    }

    /// Counts the requests that have ended when the wait is over. Handlers of a sequential server
    /// notice the deadline by themselves, before this loop does.
    fn count(&self, drain: &mut Drain) {
        if matches!(drain.step, Step::Backlog | Step::Finishing) {
            (drain.report.finished, drain.report.cancelled) = self.shared.ended_in_drain();
        }
    }

    fn refuse_backlog(&mut self) -> u64 {
        let mut refused = 0;
        for listener in 0..self.listeners.len() {
            while refused < BACKLOG && self.refuse_next(listener, &Rejection::Draining) {
                refused += 1;
            }
        }
        refused
    }
}
