//! When the next request is to begin: as soon as there is a connection for it (closed loop), or at
//! the times that a rate says, whatever the server does (open loop).

use std::time::{Duration, Instant};

/// Of one worker.
#[derive(Debug)]
pub(super) struct RequestSchedule {
    pub(super) times: Mode,
    /// From here on requests are measured.
    pub(super) measured_from: Instant,
    /// None begins from here on.
    pub(super) end: Option<Instant>,
    /// So many measured ones are still to begin.
    pub(super) left: Option<u64>,
    /// None begins any more.
    pub(super) is_closed: bool,
}

#[derive(Debug)]
pub(super) enum Mode {
    Closed,
    Open(Schedule),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextRequest {
    /// It is to begin, or was to begin then; its latency counts from there.
    Now(Instant),
    At(Instant),
    Over,
}

impl RequestSchedule {
    /// What there is to do at this time.
    pub(super) fn look(&self, now: Instant) -> NextRequest {
        if self.left == Some(0) || self.is_closed {
            return NextRequest::Over;
        }
        let due = match &self.times {
            Mode::Closed => now,
            Mode::Open(schedule) => schedule.due(),
        };
        match self.end {
            Some(end) if due >= end => NextRequest::Over,
            _ if due > now => NextRequest::At(due),
            _ => NextRequest::Now(due),
        }
    }

    /// A request has begun that was due then; says whether it is measured.
    pub(super) fn take(&mut self, due: Instant) -> bool {
        if let Mode::Open(schedule) = &mut self.times {
            schedule.next += 1;
        }
        let measured = due >= self.measured_from;
        if let (true, Some(left)) = (measured, &mut self.left) {
            *left = left.saturating_sub(1);
        }
        measured
    }

    /// One is due, and no connection is free. After the end, none is waited for; but what could have
    /// been sent is, however late this thread wakes up.
    pub(super) fn is_held_up(&mut self, now: Instant) {
        self.is_closed |= self.end.is_some_and(|end| now >= end);
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.times, Mode::Open(_))
    }

    /// How many measured ones are due by now, and were not taken.
    pub(super) fn overdue(&self, now: Instant) -> u64 {
        let Mode::Open(schedule) = &self.times else {
            return 0;
        };
        let until = self.end.map_or(now, |end| end.min(now));
        let waiting = schedule.until(until) - schedule.until(self.measured_from);
        let taken = schedule
            .next
            .saturating_sub(schedule.until(self.measured_from));
        let overdue = waiting.saturating_sub(taken);
        self.left.map_or(overdue, |left| overdue.min(left))
    }
}

/// The requests of a rate, evenly in time, of which each of `workers` has every so many-th.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) start: Instant,
    /// Of all workers, per second.
    pub(super) rate: u64,
    pub(super) worker: u64,
    pub(super) workers: u64,
    /// How many were taken.
    pub(super) next: u64,
}

impl Schedule {
    /// When the next one is due. It is reckoned from the start each time: no error adds up.
    fn due(&self) -> Instant {
        let number = u128::from(self.next * self.workers + self.worker);
        let nanos = number * 1_000_000_000 / u128::from(self.rate);
        self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX >> 1))
    }

    /// How many of this worker are due before that time.
    fn until(&self, time: Instant) -> u64 {
        let nanos = time.saturating_duration_since(self.start).as_nanos();
        // Number n is due before it if n / rate seconds are less than it.
        let of_all = (nanos * u128::from(self.rate)).div_ceil(1_000_000_000);
        let of_all = u64::try_from(of_all).unwrap_or(u64::MAX);
        of_all.saturating_sub(self.worker).div_ceil(self.workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(start: Instant, rate: u64, worker: u64, workers: u64) -> RequestSchedule {
        RequestSchedule {
            times: Mode::Open(Schedule {
                start,
                rate,
                worker,
                workers,
                next: 0,
            }),
            measured_from: start,
            end: Some(start + Duration::from_secs(1)),
            left: None,
            is_closed: false,
        }
    }

    /// The times at which a worker that is never late begins.
    fn all(mut supply: RequestSchedule, start: Instant) -> Vec<Duration> {
        let mut now = start;
        let mut seen = Vec::new();
        loop {
            match supply.look(now) {
                NextRequest::Now(due) => {
                    assert_eq!(due, now);
                    supply.take(due);
                    seen.push(due - start);
                }
                NextRequest::At(due) => now = due,
                NextRequest::Over => return seen,
            }
        }
    }

    #[test]
    fn a_rate_is_kept_to_the_request_and_shared_by_workers() {
        let start = Instant::now();
        for rate in [1, 3, 7, 1000, 999_983] {
            assert_eq!(all(open(start, rate, 0, 1), start).len() as u64, rate);
            let mut shared: Vec<_> = (0..3)
                .flat_map(|worker| all(open(start, rate, worker, 3), start))
                .collect();
            shared.sort();
            assert_eq!(shared, all(open(start, rate, 0, 1), start), "{rate}");
        }
    }

    #[test]
    fn who_is_late_has_them_all_at_once_with_the_times_they_were_due() {
        let start = Instant::now();
        let mut supply = open(start, 1000, 0, 1);
        let late = start + Duration::from_millis(300);
        assert_eq!(supply.overdue(late), 300);
        for n in 0..=300 {
            let due = start + Duration::from_millis(n);
            assert_eq!(supply.look(late), NextRequest::Now(due));
            assert!(supply.take(due));
        }
        let next = start + Duration::from_millis(301);
        assert_eq!(supply.look(late), NextRequest::At(next));
        assert_eq!(supply.overdue(late), 0);
        let after = start + Duration::from_secs(5);
        assert_eq!(supply.overdue(after), 699);
        // After the end, what is due can still be sent, until there is no connection for it.
        supply.is_held_up(late);
        assert_eq!(supply.look(after), NextRequest::Now(next));
        supply.is_held_up(after);
        assert_eq!(supply.look(after), NextRequest::Over);
        assert_eq!(supply.overdue(after), 699);
    }

    #[test]
    fn what_begins_before_the_window_is_not_measured_and_not_counted() {
        let start = Instant::now();
        let mut supply = RequestSchedule {
            times: Mode::Closed,
            measured_from: start + Duration::from_secs(1),
            end: None,
            left: Some(1),
            is_closed: false,
        };
        assert_eq!(supply.look(start), NextRequest::Now(start));
        assert!(!supply.take(start));
        let later = start + Duration::from_secs(2);
        assert_eq!(supply.look(later), NextRequest::Now(later));
        assert!(supply.take(later));
        assert_eq!(supply.look(later), NextRequest::Over);
    }
}
