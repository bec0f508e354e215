//! Requests and chunked bodies with random inputs.

use crate::common::random::{Target, try_all};
use crate::targets;

const TARGETS: [(&str, Target); 2] = [
    ("http_head", targets::http_head),
    ("http_chunked", targets::http_chunked),
];

#[test]
fn twenty_thousand_inputs() {
    try_all(&TARGETS, 20_000);
}

#[test]
#[ignore = "takes ten seconds, in release: see CONTRIBUTING.md"]
fn a_million_inputs() {
    try_all(&TARGETS, 1_000_000);
}
