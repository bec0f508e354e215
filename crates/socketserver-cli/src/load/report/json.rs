//! The report as JSON. The names contain their units, and must stay.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::Report;
use super::chart::buckets;

impl Report<'_> {
    pub(in super::super) fn json(&self) -> anyhow::Result<String> {
        let Self {
            options,
            plan,
            tally,
            ..
        } = self;
        let errors: Map<String, Value> = tally
            .kinds()
            .map(|(kind, n, _)| (kind.name().into(), n.into()))
            .collect();
        let report = json!({
            "endpoint": options.endpoint.to_string(),
            "mode": if options.rate.is_some() { "open" } else { "closed" },
            "connections": options.connections,
            "connections_at_start": tally.connected,
            "connections_closed_while_idle": tally.closed_idle,
            "threads": options.threads,
            "churn": options.churn,
            "rate_per_second": options.rate,
            "message_bytes": plan.message.len(),
            "answer": options.answer.name(),
            "timeout_seconds": seconds(options.timeout),
            "warm_up_seconds": seconds(options.warm_up),
            "duration_seconds": seconds(tally.window),
            "interrupted": self.was_interrupted,
            "requests_answered": tally.answered(),
            "requests_failed": tally.failed(),
            "requests_not_sent": tally.not_sent,
            "requests_per_second": tally.per_second(tally.done.requests),
            "sent_bytes": tally.done.sent_bytes,
            "sent_bytes_per_second": tally.per_second(tally.done.sent_bytes),
            "received_bytes": tally.done.received_bytes,
            "received_bytes_per_second": tally.per_second(tally.done.received_bytes),
            "errors": errors,
            "latency": times(&tally.latency),
            "connect": times(&tally.connect),
            "own": {
                "cpu_user_seconds": seconds(tally.used.user),
                "cpu_system_seconds": seconds(tally.used.system),
                "cpu_per_request_ns": self.cpu_per_request(),
                "busiest_thread_cores": tally.busiest,
                "waited_for_core_ratio": tally.run_queue_delay,
            },
            "warnings": self.warnings,
        });
        Ok(serde_json::to_string_pretty(&report)? + "\n")
    }
}

fn times(histogram: &Histogram<u64>) -> Value {
    let at = |quantile| histogram.value_at_quantile(quantile);
    let buckets: Vec<_> = buckets(histogram)
        .iter()
        .map(|bucket| json!({ "below_ns": bucket.below, "count": bucket.count }))
        .collect();
    if histogram.is_empty() {
        // Without values there are no times, not times of zero.
        return json!({ "count": 0, "buckets": buckets });
    }
    json!({
        "count": histogram.len(),
        "min_ns": histogram.min(),
        "mean_ns": histogram.mean(),
        "stdev_ns": histogram.stdev(),
        "p50_ns": at(0.5),
        "p75_ns": at(0.75),
        "p90_ns": at(0.9),
        "p95_ns": at(0.95),
        "p99_ns": at(0.99),
        "p99_9_ns": at(0.999),
        "p99_99_ns": at(0.9999),
        "max_ns": histogram.max(),
        "buckets": buckets,
    })
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
