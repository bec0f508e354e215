//! So many in a second: a bucket of tokens that fills up steadily.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How fast something may happen: so many per second, and so many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    per_second: f64,
    burst: f64,
}

/// Its numbers were integers, and so are equal to themselves.
impl Eq for Rate {}

/// A text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no rate: write 100 for a hundred per second, or 100:500 to allow 500 at once")]
pub struct ParseRateError(String);

impl Rate {
    /// So many per second, and as many at once after a second's pause; 0 is taken as 1.
    #[must_use]
    pub fn per_second(n: u32) -> Self {
        let n = f64::from(n.max(1));
        Self {
            per_second: n,
            burst: n,
        }
    }

    /// How many may happen at once after a long pause; 0 is taken as 1.
    #[must_use]
    pub fn burst(mut self, n: u32) -> Self {
        self.burst = f64::from(n.max(1));
        self
    }
}

impl FromStr for Rate {
    type Err = ParseRateError;

    fn from_str(text: &str) -> Result<Self, ParseRateError> {
        let number = |text: &str| match text.parse::<u32>() {
            Ok(n @ 1..) => Ok(n),
            _ => Err(()),
        };
        let parse = || match text.split_once(':') {
            None => Ok(Self::per_second(number(text)?)),
            Some((rate, burst)) => Ok(Self::per_second(number(rate)?).burst(number(burst)?)),
        };
        parse().map_err(|()| ParseRateError(text.into()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.per_second, self.burst)
    }
}

/// What is left of a rate. A new one is full.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    /// Tokens at that time; none before the first look.
    filled: Option<(f64, Instant)>,
}

impl Bucket {
    /// How many may happen now, or when the next one may.
    pub(super) fn pace(&mut self, rate: Rate, now: Instant) -> Result<usize, Instant> {
        let tokens = self.fill(rate, now);
        if tokens < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - tokens) / rate.per_second);
            // Never too early: it would be looked at again and again.
            return Err(now + wait + Duration::from_micros(1));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 1, and at most the burst"
        )]
        Ok(tokens as usize)
    }

    /// Takes one; `false` if there is none.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let tokens = self.fill(rate, now);
        let taken = tokens >= 1.0;
        if taken {
            self.filled = Some((tokens - 1.0, now));
        }
        taken
    }

    /// Takes `amount` tokens, or returns when there will be enough. More than the burst is taken
    /// from a full bucket, and the debt is paid off before the next call succeeds.
    pub(crate) fn charge(&mut self, rate: Rate, amount: f64, now: Instant) -> Result<(), Instant> {
        let tokens = self.fill(rate, now);
        let missing = amount.min(rate.burst) - tokens;
        if missing > 0.0 {
            // Longer than any request lasts, and no more than the clock can hold.
            let seconds = (missing / rate.per_second).min(1e6);
            return Err(now + Duration::from_secs_f64(seconds) + Duration::from_micros(1));
        }
        self.filled = Some((tokens - amount, now));
        Ok(())
    }

    /// Whether it is as good as new.
    pub(super) fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.fill(rate, now) >= rate.burst
    }

    fn fill(&mut self, rate: Rate, now: Instant) -> f64 {
        let tokens = match self.filled {
            None => rate.burst,
            Some((tokens, then)) => {
                let passed = now.saturating_duration_since(then).as_secs_f64();
                // A rate that was lowered meanwhile lowers what was saved.
                (tokens + passed * rate.per_second).min(rate.burst)
            }
        };
        self.filled = Some((tokens, now));
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_with_time() {
        let (rate, start) = (Rate::per_second(10).burst(3), Instant::now());
        let mut bucket = Bucket::default();
        assert_eq!(bucket.pace(rate, start), Ok(3));
        assert!((0..3).all(|_| bucket.take(rate, start)));
        assert!(!bucket.take(rate, start));
        let next = bucket.pace(rate, start).unwrap_err();
        assert!(
            next - start > Duration::from_millis(99) && next - start < Duration::from_millis(101)
        );
        assert!(bucket.take(rate, next) && !bucket.take(rate, next));
        let later = start + Duration::from_secs(60);
        assert!(bucket.is_full(rate, later));
        assert_eq!(bucket.pace(rate, later), Ok(3), "no more than the burst");
        assert_eq!(bucket.pace(Rate::per_second(1), later), Ok(1), "lowered");
    }

    #[test]
    fn more_than_the_burst_is_paid_off_afterwards() {
        let (rate, start) = (Rate::per_second(10).burst(5), Instant::now());
        let mut bucket = Bucket::default();
        assert_eq!(bucket.charge(rate, 2.0, start), Ok(()));
        let full = bucket.charge(rate, 20.0, start).unwrap_err();
        assert!(
            full - start > Duration::from_millis(199),
            "{:?}",
            full - start
        );
        assert_eq!(bucket.charge(rate, 20.0, full), Ok(()));
        let next = bucket.charge(rate, 1.0, full).unwrap_err();
        assert!(
            next - full > Duration::from_millis(1599),
            "{:?}",
            next - full
        );
        assert!(
            next - full < Duration::from_millis(1601),
            "{:?}",
            next - full
        );
        assert_eq!(bucket.charge(rate, 1.0, next), Ok(()));
    }

    #[test]
    fn rates_are_written_with_or_without_a_burst() {
        assert_eq!("100".parse(), Ok(Rate::per_second(100)));
        assert_eq!("5:20".parse(), Ok(Rate::per_second(5).burst(20)));
        for text in ["", "0", "5:0", "-1", "5:", ":5", "5/s", "99999999999"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
