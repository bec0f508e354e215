//! The time of the next request: as soon as a connection is free (closed loop), or at the times of
//! a rate, independent of the server (open loop).

use std::time::{Duration, Instant};

/// The schedule of one worker.
#[derive(Debug)]
pub(super) struct RequestSchedule {
    pub(super) times: Mode,
    /// The time from which requests are measured.
    pub(super) measured_from: Instant,
    /// The time from which no request begins.
    pub(super) end: Option<Instant>,
    /// The number of measured requests that are still to begin.
    pub(super) left: Option<u64>,
    /// True if no more requests begin.
    pub(super) is_closed: bool,
}

#[derive(Debug)]
pub(super) enum Mode {
    Closed,
    Open(Schedule),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextRequest {
    /// A request is due; its latency counts from this time.
    Now(Instant),
    At(Instant),
    Over,
}

impl RequestSchedule {
    /// Returns the action that is due at this time.
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

    /// Takes a request that was due at this time. Returns true if it is measured.
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

    /// Handles a due request without a free connection. After the end no request waits, but
    /// requests that were due before the end are sent, even if this thread wakes up late.
    pub(super) fn is_held_up(&mut self, now: Instant) {
        self.is_closed |= self.end.is_some_and(|end| now >= end);
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.times, Mode::Open(_))
    }

    /// Returns the number of measured requests that are due by now and were not taken.
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

/// The evenly spaced requests of a rate, which `workers` share in turn.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) start: Instant,
    /// Requests per second of all workers.
    pub(super) rate: u64,
    pub(super) worker: u64,
    pub(super) workers: u64,
    /// The number of requests that were taken.
    pub(super) next: u64,
}

impl Schedule {
    /// Returns the time of the next request. It is computed from the start, so that errors do not
    /// add up.
    fn due(&self) -> Instant {
        let number = u128::from(self.next * self.workers + self.worker);
        let nanos = number * 1_000_000_000 / u128::from(self.rate);
        self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX >> 1))
    }

    /// Returns the number of this worker's requests that are due before that time.
    fn until(&self, time: Instant) -> u64 {
        let nanos = time.saturating_duration_since(self.start).as_nanos();
        // Request n is due before that time if n / rate seconds are less than it.
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

    /// Returns the times at which a punctual worker begins.
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
    fn rate_is_exact_and_shared_by_workers() {
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
    fn late_worker_gets_all_due_requests_with_their_times() {
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
        // After the end, due requests are sent until no connection is free.
        supply.is_held_up(late);
        assert_eq!(supply.look(after), NextRequest::Now(next));
        supply.is_held_up(after);
        assert_eq!(supply.look(after), NextRequest::Over);
        assert_eq!(supply.overdue(after), 699);
    }

    #[test]
    fn requests_before_the_window_are_not_measured() {
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
