//! Parts of a resource: [RFC 9110, 14](https://www.rfc-editor.org/rfc/rfc9110#section-14).

use std::ops::Range;

/// What of a resource is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RangeRequest {
    /// All of it: nothing else was asked for, or so that it is better not to listen.
    Whole,
    /// These parts, in the order that was asked for; at least one.
    Parts(Vec<Range<u64>>),
    /// Nothing that it has.
    Unsatisfiable,
}

/// More parts than this are nobody's who wants to go on with a download; and many small or
/// overlapping ones cost us more than them (RFC 9110, 14.2 and 17.15).
const MOST: usize = 16;

/// Understands a `Range`. What is no valid one is as if it was not there, and so is one in other
/// units than bytes.
pub(super) fn wanted(range: &str, length: u64) -> RangeRequest {
    let Some((unit, specs)) = range.split_once('=') else {
        return RangeRequest::Whole;
    };
    if !unit.eq_ignore_ascii_case("bytes") {
        return RangeRequest::Whole;
    }
    let mut parts = Vec::new();
    let (mut count, mut is_satisfied) = (0, false);
    for spec in specs.split(',') {
        let spec = spec.trim_matches([' ', '\t']);
        if spec.is_empty() {
            continue;
        }
        count += 1;
        if count > MOST {
            return RangeRequest::Whole;
        }
        match part(spec, length) {
            Some(part) if part.is_empty() => is_satisfied |= length == 0 && is_suffix(spec),
            Some(part) => parts.push(part),
            None => return RangeRequest::Whole,
        }
    }
    let total: u128 = parts.iter().map(|p| u128::from(p.end - p.start)).sum();
    match parts[..] {
        [] if count == 0 || is_satisfied => RangeRequest::Whole,
        [] => RangeRequest::Unsatisfiable,
        _ if parts.len() > 1 && total > u128::from(length) => RangeRequest::Whole,
        _ => RangeRequest::Parts(parts),
    }
}

/// `None` if it is malformed; empty if there is nothing there.
fn part(spec: &str, length: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    let nothing = 0..0;
    if first.is_empty() {
        let suffix = number(last)?;
        return Some(length.saturating_sub(suffix)..length);
    }
    let first = number(first)?;
    let end = match last {
        "" => length,
        last => {
            let last = number(last)?;
            if last < first {
                return None;
            }
            last.saturating_add(1).min(length)
        }
    };
    Some(if first < length { first..end } else { nothing })
}

/// Whether the last bytes are wanted, and not none of them. That is satisfiable, however short the
/// resource is: RFC 9110, 14.1.2.
fn is_suffix(spec: &str) -> bool {
    let length = spec.strip_prefix('-').and_then(number);
    length.is_some_and(|length| length > 0)
}

/// Digits only; what is more than can be counted is beyond every end.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "one part is a list of one")]

    use super::*;

    #[test]
    fn ranges_are_those_of_the_rfc() {
        let parts = |parts: &[Range<u64>]| RangeRequest::Parts(parts.to_vec());
        for (range, expected) in [
            // The examples of RFC 9110, 14.1.2, for a length of 10000.
            ("bytes=0-499", parts(&[0..500])),
            ("bytes=500-999", parts(&[500..1000])),
            ("bytes=-500", parts(&[9500..10000])),
            ("bytes=9500-", parts(&[9500..10000])),
            ("bytes=0-0,-1", parts(&[0..1, 9999..10000])),
            (
                "bytes= 0-999, 4500-5499, -1000",
                parts(&[0..1000, 4500..5500, 9000..10000]),
            ),
            // Ends beyond the end.
            ("bytes=9999-20000", parts(&[9999..10000])),
            ("bytes=-20000", parts(&[0..10000])),
            ("bytes=5-18446744073709551616", parts(&[5..10000])),
            ("BYTES=1-2", parts(&[1..3])),
            ("bytes=1-2,20000-", parts(&[1..3])),
            ("bytes=,1-2,", parts(&[1..3])),
            ("bytes=10000-", RangeRequest::Unsatisfiable),
            ("bytes=10000-10001,20000-", RangeRequest::Unsatisfiable),
            ("bytes=-0", RangeRequest::Unsatisfiable),
            // Malformed, or nothing that we know.
            ("bytes", RangeRequest::Whole),
            ("bytes=", RangeRequest::Whole),
            ("bytes=a-b", RangeRequest::Whole),
            ("bytes=5-4", RangeRequest::Whole),
            ("bytes=+1-2", RangeRequest::Whole),
            ("bytes=1 -2", RangeRequest::Whole),
            ("bytes=-", RangeRequest::Whole),
            ("bytes=1-2-3", RangeRequest::Whole),
            ("seconds=1-2", RangeRequest::Whole),
            // Too much trouble.
            ("bytes=0-,0-,0-", RangeRequest::Whole),
        ] {
            assert_eq!(wanted(range, 10_000), expected, "{range}");
        }
        let many = format!("bytes={}", "1-1,".repeat(MOST + 1));
        assert_eq!(wanted(&many, 10_000), RangeRequest::Whole);
        assert_eq!(wanted("bytes=0-", 0), RangeRequest::Unsatisfiable);
        assert_eq!(wanted("bytes=-0", 0), RangeRequest::Unsatisfiable);
        assert_eq!(wanted("bytes=-5", 0), RangeRequest::Whole);
        assert_eq!(wanted("bytes=0-,-5", 0), RangeRequest::Whole);
    }
}
