//! Runs each decoder with random inputs.

use crate::common::random::{Target, try_all};
use crate::targets;

const TARGETS: [(&str, Target); 5] = [
    ("lines", targets::lines),
    ("utf8_lines", targets::utf8_lines),
    ("length_prefix", targets::length_prefix),
    ("netstring", targets::netstring),
    ("json_header", targets::json_header),
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
