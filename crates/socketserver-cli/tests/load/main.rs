//! `socketserver load`: what it counts is what happened, on every kind of endpoint, and whatever the
//! server does.

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

/// Runs it to its end.
fn load(endpoint: &str, args: &[&str]) -> Output {
    run(socketserver().args(["load", endpoint]), args, b"").unwrap()
}

/// Its report, and its exit status.
#[track_caller]
fn report(endpoint: &str, args: &[&str]) -> (Value, Option<i32>) {
    let output = load(endpoint, &[args, &["--json"]].concat());
    let told = text(&output.stdout);
    let Ok(report) = serde_json::from_str(&told) else {
        panic!("no report: {told} {}", text(&output.stderr));
    };
    (report, output.status.code())
}

/// The report of one in which nothing fails.
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

/// How many requests took longer than this, of the bounds 1, 2, 5, 10...
fn slower_than(report: &Value, nanos: u64) -> u64 {
    let buckets = report["latency"]["buckets"].as_array().unwrap();
    let slower = buckets.iter().filter(|b| number(b, "below_ns") > nanos);
    slower.map(|bucket| number(bucket, "count")).sum()
}
