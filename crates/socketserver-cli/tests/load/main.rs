//! Tests that the counts of `socketserver load` are correct on every kind of endpoint, for any
//! behavior of the server.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod counts;
mod failures;
mod servers;
mod usage;

use std::process::Output;

use serde_json::Value;

use common::{run, socketserver, text};

/// Runs `socketserver load` to its end.
fn load(endpoint: &str, args: &[&str]) -> Output {
    run(socketserver().args(["load", endpoint]), args, b"").unwrap()
}

/// Returns the report and the exit status.
#[track_caller]
fn report(endpoint: &str, args: &[&str]) -> (Value, Option<i32>) {
    let output = load(endpoint, &[args, &["--json"]].concat());
    let told = text(&output.stdout);
    let Ok(report) = serde_json::from_str(&told) else {
        panic!("no report: {told} {}", text(&output.stderr));
    };
    (report, output.status.code())
}

/// Returns the report of a run without failures.
#[track_caller]
fn success(endpoint: &str, args: &[&str]) -> Value {
    let (report, code) = report(endpoint, args);
    assert_eq!(code, Some(0), "{endpoint} {args:?}: {report:#}");
    assert_eq!(number(&report, "requests_failed"), 0);
    assert_eq!(report["errors"], serde_json::json!({}));
    report
}

#[track_caller]
fn number(report: &Value, name: &str) -> u64 {
    let value = name.split('.').fold(report, |value, key| &value[key]);
    let Some(n) = value.as_u64() else {
        panic!("{name} is {value}: {report:#}");
    };
    n
}

/// Returns the number of requests that took longer than `nanos`, which is one of the bounds 1, 2,
/// 5, 10...
fn slower_than(report: &Value, nanos: u64) -> u64 {
    let buckets = report["latency"]["buckets"].as_array().unwrap();
    let slower = buckets.iter().filter(|b| number(b, "below_ns") > nanos);
    slower.map(|bucket| number(bucket, "count")).sum()
}
