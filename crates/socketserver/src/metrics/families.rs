//! The metric families. The table in `names.md` lists all names; a test compares the two.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::MonitoredServer;
use super::encode::{Encoder, Float, Kind};
use super::process::Process;
use crate::event::Counters;
use crate::{DrainReport, ServerState};

/// The values of one server, read once for all families.
struct Snapshot<'a> {
    monitored: &'a MonitoredServer,
    counters: Counters,
    drain: DrainReport,
    state: ServerState,
    bytes: [u64; 2],
    live: usize,
}

impl<'a> Snapshot<'a> {
    fn read(monitored: &'a MonitoredServer) -> Self {
        let handle = &monitored.handle;
        // Active requests are read first, so that a request that ends in between is counted twice
        // instead of never.
        Self {
            live: handle.active_count(),
            bytes: monitored.bytes(),
            counters: handle.counters(),
            drain: handle.drain_progress().unwrap_or_default(),
            state: handle.state(),
            monitored,
        }
    }
}

pub(super) fn render(servers: &[MonitoredServer], certificates: &[(String, SystemTime)]) -> String {
    let snapshots: Vec<_> = servers.iter().map(Snapshot::read).collect();
    let mut text = Encoder::default();
    requests(&mut text, &snapshots);
    bytes(&mut text, &snapshots);
    failures(&mut text, &snapshots);
    state_and_drain(&mut text, &snapshots);
    certificate_expiry(&mut text, certificates);
    // The owner of the server and not the current process, which may be a child of a forking
    // server.
    let owner = servers.first().map(|monitored| {
        let lifecycle = &monitored.handle.0.lifecycle;
        lifecycle.owner()
    });
    process(&mut text, &Process::read(owner));
    text.finish()
}

/// Writes a family with one sample per server.
macro_rules! each {
    ($text:ident, $snapshots:ident, $kind:ident $name:literal, $help:literal, $value:expr) => {
        let mut family = $text.family($name, Kind::$kind, $help);
        for snapshot in $snapshots {
            family.sample(&[("server", &snapshot.monitored.name)], $value(snapshot));
        }
    };
}

/// Writes a family with one sample per server and value of a second label.
macro_rules! each_of {
    ($text:ident, $snapshots:ident, $kind:ident $name:literal, $label:literal, $help:literal, $values:expr) => {
        let mut family = $text.family($name, Kind::$kind, $help);
        for snapshot in $snapshots {
            for (value, count) in $values(snapshot) {
                let labels = [
                    ("server", snapshot.monitored.name.as_str()),
                    ($label, value),
                ];
                family.sample(&labels, count);
            }
        }
    };
}

fn requests(text: &mut Encoder, all: &[Snapshot<'_>]) {
    each!(text, all, Counter "socketserver_requests_accepted_total",
        "Requests accepted, the refused ones among them.",
        |f: &Snapshot<'_>| f.counters.accepted);
    each_of!(text, all, Counter "socketserver_requests_rejected_total", "reason",
        "Requests closed without a handler.",
        |f: &Snapshot<'_>| f.counters.rejections());
    each_of!(text, all, Counter "socketserver_requests_ended_total", "reason",
        "Requests that ended.",
        |f: &Snapshot<'_>| f.counters.ends());
    each!(text, all, Gauge "socketserver_requests_active",
        "Requests accepted that have not ended.",
        |f: &Snapshot<'_>| f.live);
    each!(text, all, Gauge "socketserver_requests_suspended",
        "Live requests that are kept alive, between two calls of their handlers.",
        |f: &Snapshot<'_>| f.monitored.handle.waiting_count());
    each!(text, all, Gauge "socketserver_requests_queued",
        "Live requests that wait until there is room for them.",
        |f: &Snapshot<'_>| f.monitored.handle.queued_count());
    each!(text, all, Gauge "socketserver_requests_limit",
        "How many requests the server serves at once.",
        |f: &Snapshot<'_>| limit(f.monitored.handle.limit()));
    let mut family = text.family(
        "socketserver_request_duration_seconds",
        Kind::Histogram,
        "From accept to close, of requests that ended since the server was added.",
    );
    for snapshot in all {
        let name = snapshot.monitored.name.as_str();
        let histogram = snapshot.monitored.handle.0.sink.durations().read();
        for (bound, count) in histogram.cumulative {
            let bound = Float(bound).to_string();
            family.suffixed("_bucket", &[("server", name), ("le", &bound)], count);
        }
        family.suffixed("_sum", &[("server", name)], Float(histogram.sum));
        family.suffixed("_count", &[("server", name)], histogram.count);
    }
}

fn bytes(text: &mut Encoder, all: &[Snapshot<'_>]) {
    each!(text, all, Counter "socketserver_received_bytes_total",
        "Bytes received from peers.",
        |f: &Snapshot<'_>| f.bytes[0]);
    each!(text, all, Counter "socketserver_sent_bytes_total",
        "Bytes sent to peers.",
        |f: &Snapshot<'_>| f.bytes[1]);
}

fn failures(text: &mut Encoder, all: &[Snapshot<'_>]) {
    each_of!(text, all, Counter "socketserver_accept_errors_total", "errno",
        "Failed attempts to accept, or to start a thread or process for what was accepted.",
        |f: &Snapshot<'_>| f.counters.accept_errors_by_errno());
    each_of!(text, all, Counter "socketserver_hook_failures_total", "hook",
        "Hooks and observers that returned an error or panicked.",
        |f: &Snapshot<'_>| f.counters.hook_failures_by_hook());
    each!(text, all, Counter "socketserver_datagrams_truncated_total",
        "Datagrams that were longer than there was room for.",
        |f: &Snapshot<'_>| f.counters.truncated);
    each!(text, all, Counter "socketserver_datagrams_dropped_total",
        "Datagrams that the kernel dropped before they were received.",
        |f: &Snapshot<'_>| f.counters.dropped_by_kernel);
    each!(text, all, Counter "socketserver_replies_withheld_total",
        "Replies to datagrams that were not sent, by the limit on amplification.",
        |f: &Snapshot<'_>| f.counters.amplification_refused);
}

fn state_and_drain(text: &mut Encoder, all: &[Snapshot<'_>]) {
    each_of!(text, all, Gauge "socketserver_state", "state",
    "1 for the state that the server is in, 0 for the others.",
    |f: &Snapshot<'_>| {
        let now = f.state;
        ServerState::ALL.map(|state| (state.name(), u8::from(state == now)))
    });
    each!(text, all, Counter "socketserver_drains_total",
        "Drains that began.",
        |f: &Snapshot<'_>| f.counters.drains);
    each_of!(text, all, Counter "socketserver_drain_requests_total", "outcome",
    "What became of requests in the drain.",
    |f: &Snapshot<'_>| [
        ("queued", f.drain.queued),
        ("finished", f.drain.finished),
        ("refused", f.drain.refused),
        ("cancelled", f.drain.cancelled),
        ("abandoned", f.drain.abandoned),
    ]);
    each!(text, all, Gauge "socketserver_drain_duration_seconds",
        "How long the drain took, or has taken so far.",
        |f: &Snapshot<'_>| seconds(f.drain.elapsed));
}

/// Writes the expiry of each certificate. There is no such family without certificates.
fn certificate_expiry(text: &mut Encoder, certificates: &[(String, SystemTime)]) {
    if certificates.is_empty() {
        return;
    }
    let mut family = text.family(
        "socketserver_tls_certificate_end_timestamp_seconds",
        Kind::Gauge,
        "When a certificate ends, in seconds since 1970.",
    );
    for (name, end) in certificates {
        let since = end.duration_since(UNIX_EPOCH).unwrap_or_default();
        family.sample(&[("certificate", name)], since.as_secs());
    }
}

/// Writes the metrics of the process. A value that could not be read has no sample, because the
/// format cannot express an unknown value.
fn process(text: &mut Encoder, process: &Process) {
    let mut add = |name, kind, help, value: Option<f64>| {
        let mut family = text.family(name, kind, help);
        if let Some(value) = value {
            family.sample(&[], Float(value));
        }
    };
    add(
        "process_cpu_seconds_total",
        Kind::Counter,
        "User and system time in seconds.",
        process.cpu_seconds,
    );
    add(
        "process_open_fds",
        Kind::Gauge,
        "Open file descriptors.",
        process.open_fds,
    );
    add(
        "process_max_fds",
        Kind::Gauge,
        "How many open file descriptors there may be.",
        process.max_fds,
    );
    add("process_threads", Kind::Gauge, "Threads.", process.threads);
    add(
        "process_resident_memory_bytes",
        Kind::Gauge,
        "Resident memory in bytes.",
        process.resident_bytes,
    );
    add(
        "process_virtual_memory_bytes",
        Kind::Gauge,
        "Virtual memory in bytes.",
        process.virtual_bytes,
    );
    add(
        "process_start_time_seconds",
        Kind::Gauge,
        "When the process started, in seconds since 1970.",
        process.started,
    );
}

/// Converts a limit. `usize::MAX` means that the model has no limit.
fn limit(limit: usize) -> Float {
    match u32::try_from(limit) {
        Ok(limit) => Float(limit.into()),
        Err(_) => Float(f64::INFINITY),
    }
}

fn seconds(duration: Duration) -> Float {
    Float(duration.as_secs_f64())
}
