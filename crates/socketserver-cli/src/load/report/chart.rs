//! A histogram as text: the number of requests for each range of latencies, in steps of 1, 2, 5, 10
//! and so on.

use std::fmt::Write;

use hdrhistogram::Histogram;

use super::thousands;
use super::units::time;

/// The number of values from `from` (inclusive) to `below` (exclusive), in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) from: u64,
    pub(super) below: u64,
    pub(super) count: u64,
}

/// Returns the buckets from the first non-empty one to the last.
pub(super) fn buckets(histogram: &Histogram<u64>) -> Vec<Bucket> {
    let mut all: Vec<Bucket> = Vec::new();
    let mut bounds = bounds();
    let (mut from, mut below) = (0, 1);
    for value in histogram.iter_recorded() {
        // The histogram does not distinguish values that it counts together, and the lowest of them
        // is at most the measured value.
        let least = histogram.lowest_equivalent(value.value_iterated_to());
        while least >= below {
            if !all.is_empty() {
                all.push(Bucket {
                    from,
                    below,
                    count: 0,
                });
            }
            let Some(next) = bounds.next() else { break };
            (from, below) = (below, next);
        }
        match all.last_mut() {
            Some(last) if last.below == below => last.count += value.count_at_value(),
            _ => all.push(Bucket {
                from,
                below,
                count: value.count_at_value(),
            }),
        }
    }
    all.dedup_by(|next, kept| next.below == kept.below && next.count == 0);
    all
}

/// Returns 2, 5, 10, 20, 50 and so on, up to the range of u64.
fn bounds() -> impl Iterator<Item = u64> {
    (0..20).flat_map(|exponent| {
        let ten = 10_u64.pow(exponent.min(19));
        [2, 5, 10]
            .into_iter()
            .filter_map(move |n| ten.checked_mul(n))
    })
}

/// The length of the longest bar.
const WIDTH: u64 = 40;

pub(super) fn draw(histogram: &Histogram<u64>) -> String {
    let all = buckets(histogram);
    let most = all.iter().map(|bucket| bucket.count).max().unwrap_or(0);
    let mut text = String::new();
    for Bucket { from, below, count } in all {
        let full = u64::try_from(u128::from(count) * u128::from(WIDTH) / u128::from(most.max(1)));
        let full = usize::try_from(full.unwrap_or(WIDTH)).unwrap_or(0);
        let bar = match count {
            0 => String::new(),
            // A dot marks a non-empty bucket that is too small for a bar.
            _ if full == 0 => ".".into(),
            _ => "#".repeat(full),
        };
        #[expect(clippy::cast_precision_loss, reason = "a percentage")]
        let percent = count as f64 * 100.0 / histogram.len().max(1) as f64;
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            text,
            "  {:>7} – {:<7} {bar:<40} {percent:>6.2} %  {}",
            time(from),
            time(below),
            thousands(count)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_its_bucket() {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        assert!(buckets(&histogram).is_empty());
        for (value, n) in [
            (1_500, 3),
            (1_999, 1),
            (2_000, 4),
            (30_000, 2),
            (70_000_000, 1),
        ] {
            histogram.record_n(value, n).unwrap();
        }
        let all = buckets(&histogram);
        let of = |from: u64| all.iter().find(|b| b.from == from).unwrap().count;
        assert_eq!(
            all[0],
            Bucket {
                from: 1000,
                below: 2000,
                count: 4
            }
        );
        assert_eq!(
            (of(2000), of(5000), of(20_000), of(50_000_000)),
            (4, 0, 2, 1)
        );
        assert_eq!(all.last().unwrap().below, 100_000_000);
        assert!(all.windows(2).all(|pair| pair[0].below == pair[1].from));
        assert_eq!(all.iter().map(|b| b.count).sum::<u64>(), histogram.len());
        assert_eq!(draw(&histogram).lines().count(), all.len());
    }
}
