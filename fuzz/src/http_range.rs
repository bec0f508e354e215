//! What is tried with the value of `Range`, whoever makes it up: libFuzzer, or the random tests of
//! `crates/socketserver/tests/http`, which include this file. Beside it has to be `range.rs`.
//!
//! Whatever is asked for, and however long the file is:
//!
//! * nothing panics;
//! * what is sent is in the file, in no more than a few parts, and no more than all of it;
//! * what was understood is understood alike when it is written anew.

use std::fmt::Write;

use super::range::{Wanted, wanted};

/// Lengths of files: none, short, and as long as a number can tell.
const LENGTHS: [u64; 6] = [0, 1, 10, 10_000, i64::MAX.unsigned_abs(), u64::MAX];

pub fn http_range(input: &[u8]) {
    // A field that is no text does not get so far.
    let Ok(range) = std::str::from_utf8(input) else {
        return;
    };
    for length in LENGTHS {
        let Wanted::Parts(parts) = wanted(range, length) else {
            continue;
        };
        assert!((1..=16).contains(&parts.len()), "{parts:?}");
        assert!(
            parts.iter().all(|it| it.start < it.end && it.end <= length),
            "{parts:?} of {length}"
        );
        let total: u128 = parts.iter().map(|it| u128::from(it.end - it.start)).sum();
        assert!(total <= u128::from(length), "{parts:?} of {length}");
        let mut anew = String::from("bytes=");
        for part in &parts {
            let _ = write!(anew, "{}-{},", part.start, part.end - 1);
        }
        assert_eq!(wanted(&anew, length), Wanted::Parts(parts));
    }
}
