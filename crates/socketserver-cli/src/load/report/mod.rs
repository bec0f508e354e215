//! The report: as text, as JSON, and as percentiles for a plot.

mod chart;
mod json;
mod percentiles;
mod text;
mod units;

use super::Options;
use super::failure::Kind;
use super::response::ResponseMatcher;
use super::stats::Stats;
use super::worker::Plan;

pub(super) use percentiles::write as percentiles;
pub(super) use units::thousands;

pub(super) struct Report<'a> {
    options: &'a Options,
    plan: &'a Plan,
    tally: &'a Stats,
    was_interrupted: bool,
    /// Facts that limit the validity of the results.
    warnings: Vec<String>,
}

/// The share of a core from which the load tool counts as busy.
const BUSY: f64 = 0.9;

/// The maximum share of time for which the load tool may wait for a core.
const HELD_UP: f64 = 0.1;

impl<'a> Report<'a> {
    pub(super) fn new(
        options: &'a Options,
        plan: &'a Plan,
        tally: &'a Stats,
        was_interrupted: bool,
    ) -> Self {
        let mut report = Self {
            options,
            plan,
            tally,
            was_interrupted,
            warnings: Vec::new(),
        };
        report.warnings = report.find_warnings();
        report
    }

    fn find_warnings(&self) -> Vec<String> {
        let Self { options, tally, .. } = self;
        let mut warnings = Vec::new();
        if self.was_interrupted {
            warnings.push("it was interrupted; requests under way then are not counted".into());
        }
        let wanted = u64::from(options.connections);
        if !options.churn && tally.connected < wanted {
            warnings.push(format!(
                "only {} of {} connections were there when the load began",
                thousands(tally.connected),
                thousands(wanted)
            ));
        }
        if !options.churn && self.closes_after_each() {
            warnings.push(
                "the server closes each connection after an answer or two: use --churn, which opens one for \
                 each request"
                    .into(),
            );
        }
        if tally.busiest > BUSY {
            warnings.push(format!(
                "the load tool itself was the limit: a thread of it used {:.0} % of a core; use more \
                 --threads, or several machines",
                tally.busiest * 100.0
            ));
        }
        if tally.run_queue_delay > HELD_UP {
            warnings.push(format!(
                "the load tool waited for a core for {:.0} % of the time, as others had them all; \
                 latencies include that: give it a core of its own, or another machine",
                tally.run_queue_delay * 100.0
            ));
        }
        if let Some(rate) = options.rate
            && tally.not_sent > u64::from(rate) / 100
        {
            warnings.push(format!(
                "the rate was not reached: {} requests were due and not sent, as no connection was \
                 free; what they would have waited is missing from the latencies: use more \
                 --connections, or the server cannot do it",
                thousands(tally.not_sent)
            ));
        }
        warnings
    }

    /// Returns true if connections end about as often as requests are answered.
    fn closes_after_each(&self) -> bool {
        let closed = self.tally.kinds().filter_map(|(kind, n, _)| {
            matches!(kind, Kind::ClosedEarly | Kind::Reset).then_some(n)
        });
        let closed = closed.sum::<u64>() + self.tally.closed_idle;
        let answered = self.tally.done.requests;
        answered > 0 && closed * 2 >= answered
    }

    /// Returns the nanoseconds of CPU time for each request.
    fn cpu_per_request(&self) -> u64 {
        let nanos = self.tally.used.total().as_nanos();
        let each = nanos.checked_div(self.tally.done.requests.into());
        each.and_then(|each| u64::try_from(each).ok()).unwrap_or(0)
    }

    fn is_one_way(&self) -> bool {
        self.plan.rule.answer == ResponseMatcher::None
    }
}
