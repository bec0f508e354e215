//! Runs the parsers of requests, ranges and chunked bodies with random inputs. The program `http`
//! covers paths.

use crate::common::random::{Target, try_all};
use crate::{range_target, targets};

const TARGETS: [(&str, Target); 3] = [
    ("http_head", targets::http_head),
    ("http_chunked", targets::http_chunked),
    ("http_range", range_target::http_range),
];

#[test]
fn twenty_thousand_random_inputs_cause_no_panic() {
    try_all(&TARGETS, 20_000);
}

#[test]
#[ignore = "takes ten seconds, in release: see CONTRIBUTING.md"]
fn million_random_inputs_cause_no_panic() {
    try_all(&TARGETS, 1_000_000);
}
