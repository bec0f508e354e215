//! Parts of a resource: [RFC 9110, 14](https://www.rfc-editor.org/rfc/rfc9110#section-14).

use std::ops::Range;

/// The result of parsing a `Range` field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RangeRequest {
    /// The whole resource: the request has no range, or its range is ignored.
    Whole,
    /// These parts, in the requested order; at least one.
    Parts(Vec<Range<u64>>),
    /// No requested part exists in the resource.
    Unsatisfiable,
}

/// The maximum number of parts. A client that resumes a download needs fewer. Many small or
/// overlapping parts cost the server more than the client (RFC 9110, 14.2 and 17.15).
const MOST: usize = 16;

/// Parses a `Range` field. An invalid range, and a range in other units than bytes, are ignored.
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

/// Returns `None` if the part is malformed, and an empty range if the part does not exist.
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

/// Returns true if `spec` is a suffix range of at least one byte. Such a range is satisfiable,
/// however short the resource is: RFC 9110, 14.1.2.
fn is_suffix(spec: &str) -> bool {
    let length = spec.strip_prefix('-').and_then(number);
    length.is_some_and(|length| length > 0)
}

/// Parses digits only. A number that overflows is beyond every end.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "one part is a list of one")]

    use super::*;

    #[test]
    fn ranges_match_the_examples_of_the_rfc() {
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
            // Malformed, or an unknown unit.
            ("bytes", RangeRequest::Whole),
            ("bytes=", RangeRequest::Whole),
            ("bytes=a-b", RangeRequest::Whole),
            ("bytes=5-4", RangeRequest::Whole),
            ("bytes=+1-2", RangeRequest::Whole),
            ("bytes=1 -2", RangeRequest::Whole),
            ("bytes=-", RangeRequest::Whole),
            ("bytes=1-2-3", RangeRequest::Whole),
            ("seconds=1-2", RangeRequest::Whole),
            // Ranges that cost too much.
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
