//! Properties of the value of `Range`. The input comes from libFuzzer, or from the random tests in
//! `crates/socketserver/tests/http`, which include this file. The including module needs `range.rs`
//! beside it.
//!
//! For any input and any length of the file:
//!
//! * nothing panics;
//! * the ranges lie within the file, are at most 16, and have at most the length of the file in
//!   all;
//! * ranges that are written out again parse to the same ranges.

use std::fmt::Write;

use super::range::{RangeRequest, wanted};

/// Lengths of files: zero, short, and up to the maximum of the type.
const LENGTHS: [u64; 6] = [0, 1, 10, 10_000, i64::MAX.unsigned_abs(), u64::MAX];

pub fn http_range(input: &[u8]) {
    // A field that is not text is rejected earlier.
    let Ok(range) = std::str::from_utf8(input) else {
        return;
    };
    for length in LENGTHS {
        let RangeRequest::Parts(parts) = wanted(range, length) else {
            continue;
        };
        assert!((1..=16).contains(&parts.len()), "{parts:?}");
        assert!(
            parts.iter().all(|it| it.start < it.end && it.end <= length),
            "{parts:?} of {length}"
        );
        let total: u128 = parts.iter().map(|it| u128::from(it.end - it.start)).sum();
        assert!(total <= u128::from(length), "{parts:?} of {length}");
        let mut rewritten = String::from("bytes=");
        for part in &parts {
            let _ = write!(rewritten, "{}-{},", part.start, part.end - 1);
        }
        assert_eq!(wanted(&rewritten, length), RangeRequest::Parts(parts));
    }
}
