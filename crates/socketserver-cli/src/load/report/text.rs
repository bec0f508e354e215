//! The report as text.

use std::fmt::Write;

use humantime::format_duration;

use super::super::response::ResponseMatcher;
use super::Report;
use super::chart::draw;
use super::units::{bytes, thousands, time};

/// The width of the column of names.
const NAMES: usize = 12;

impl Report<'_> {
    pub(in super::super) fn text(&self) -> String {
        let tally = self.tally;
        let mut text = format!("{}\n\n", self.what());
        let mut line = |name: &str, what: String| {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "{name:<NAMES$}{what}");
        };
        line("requests", self.requests());
        line(
            "per second",
            format!("{:.1}", tally.per_second(tally.done.requests)),
        );
        line(
            "bytes",
            format!(
                "{}/s sent, {}/s received",
                bytes(tally.per_second(tally.done.sent_bytes)),
                bytes(tally.per_second(tally.done.received_bytes))
            ),
        );
        line("connections", self.connections());
        for (kind, n, detail) in tally.kinds() {
            let detail = detail.map_or(String::new(), |detail| format!(" ({detail})"));
            line(
                "failed",
                format!(
                    "{} {}: {}{detail}",
                    thousands(n),
                    kind.name(),
                    kind.meaning()
                ),
            );
        }
        line("own CPU", self.own());
        if !tally.latency.is_empty() {
            text.push('\n');
            text.push_str(&self.latency());
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "\nwarning: {warning}");
        }
        text
    }

    /// Returns a description of the load.
    fn what(&self) -> String {
        let Self {
            options,
            plan,
            tally,
            ..
        } = self;
        let how = match options.rate {
            Some(rate) => format!("open loop, {} requests/s", thousands(rate.into())),
            None => "closed loop".into(),
        };
        let answer = match options.answer {
            ResponseMatcher::Same if plan.rule.is_datagram => "a datagram as answer".into(),
            ResponseMatcher::Same => "as many as answer".into(),
            ResponseMatcher::Line => "a line as answer".into(),
            ResponseMatcher::Bytes(n) => format!("{} as answer", thousands(n as u64)),
            ResponseMatcher::None => "no answer".into(),
        };
        let connections = if plan.rule.is_datagram {
            "sockets"
        } else {
            "connections"
        };
        let churn = if options.churn {
            ", each for one request"
        } else {
            ""
        };
        let window = format!("{:.2} s", tally.window.as_secs_f64());
        let warm_up = if options.warm_up.is_zero() {
            String::new()
        } else {
            format!(", after {} of warm-up", format_duration(options.warm_up))
        };
        format!(
            "{}: {} {connections}{churn}, {how}, messages of {} bytes, {answer}, {window}{warm_up}",
            options.endpoint,
            thousands(options.connections.into()),
            thousands(plan.message.len() as u64),
        )
    }

    fn requests(&self) -> String {
        let done = if self.is_one_way() {
            "sent"
        } else {
            "answered"
        };
        let mut text = format!(
            "{} {done}, {} failed",
            thousands(self.tally.answered()),
            thousands(self.tally.failed())
        );
        if self.tally.not_sent > 0 {
            let _ = write!(text, ", {} not sent", thousands(self.tally.not_sent));
        }
        text
    }

    fn connections(&self) -> String {
        let tally = self.tally;
        let opened = &tally.connect;
        let mut text = format!("{} opened", thousands(opened.len()));
        if !opened.is_empty() {
            let _ = write!(
                text,
                ": p50 {}, p99 {}, max {}",
                time(opened.value_at_quantile(0.5)),
                time(opened.value_at_quantile(0.99)),
                time(opened.max())
            );
        }
        if tally.closed_idle > 0 {
            let _ = write!(
                text,
                "; {} closed by the server between requests",
                thousands(tally.closed_idle)
            );
        }
        text
    }

    fn own(&self) -> String {
        let tally = self.tally;
        format!(
            "{:.2} s user, {:.2} s system; {} per request; busiest thread {:.0} % of a core",
            tally.used.user.as_secs_f64(),
            tally.used.system.as_secs_f64(),
            time(self.cpu_per_request()),
            tally.busiest * 100.0
        )
    }

    fn latency(&self) -> String {
        let all = &self.tally.latency;
        let from = match (self.options.rate, self.options.churn) {
            (Some(_), _) => "from when a request was due",
            (None, true) => "from connecting",
            (None, false) => "from sending",
        };
        let to = if self.is_one_way() {
            "until the system had all of it"
        } else {
            "to the answer"
        };
        let at = |quantile| time(all.value_at_quantile(quantile));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a mean is between its least and its greatest"
        )]
        let mean = time(all.mean() as u64);
        format!(
            "latency, {from} {to}:\n  min {}, mean {mean}, p50 {}, p90 {}, p99 {}, p99.9 {}, max {}\n\n{}",
            time(all.min()),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            time(all.max()),
            draw(all)
        )
    }
}
