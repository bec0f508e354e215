//! Rates and token buckets.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A rate limit as a token bucket: a sustained rate per second and a burst size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    per_second: f64,
    burst: f64,
}

/// Both numbers are integers and never NaN, so equality is reflexive.
impl Eq for Rate {}

/// The error of parsing a [`Rate`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no rate: write 100 for a hundred per second, or 100:500 to allow 500 at once")]
pub struct ParseRateError(String);

impl Rate {
    /// Creates a rate of `n` per second with a burst of `n`. 0 counts as 1.
    #[must_use]
    pub fn per_second(n: u32) -> Self {
        let n = f64::from(n.max(1));
        Self {
            per_second: n,
            burst: n,
        }
    }

    /// Sets the burst size: the number that is allowed at once after a long pause. 0 counts as 1.
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

/// The state of a token bucket. A new bucket is full.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    /// The number of tokens and the time of the last update; `None` before the first use.
    filled: Option<(f64, Instant)>,
}

impl Bucket {
    /// Returns the number of available tokens, or, if there is none, when the next token is
    /// available.
    pub(super) fn pace(&mut self, rate: Rate, now: Instant) -> Result<usize, Instant> {
        let tokens = self.fill(rate, now);
        if tokens < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - tokens) / rate.per_second);
            // Rounded up, so that the caller does not wake up too early and check again.
            return Err(now + wait + Duration::from_micros(1));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 1, and at most the burst"
        )]
        Ok(tokens as usize)
    }

    /// Takes a token and returns true, or returns false if there is none.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let tokens = self.fill(rate, now);
        let taken = tokens >= 1.0;
        if taken {
            self.filled = Some((tokens - 1.0, now));
        }
        taken
    }

    /// Takes `amount` tokens, or returns the time when enough tokens are available. An amount above
    /// the burst size needs a full bucket and leaves a negative balance, which delays the next
    /// call.
    pub(crate) fn charge(&mut self, rate: Rate, amount: f64, now: Instant) -> Result<(), Instant> {
        let tokens = self.fill(rate, now);
        let missing = amount.min(rate.burst) - tokens;
        if missing > 0.0 {
            // Capped at a time that exceeds any request and does not overflow the clock.
            let seconds = (missing / rate.per_second).min(1e6);
            return Err(now + Duration::from_secs_f64(seconds) + Duration::from_micros(1));
        }
        self.filled = Some((tokens - amount, now));
        Ok(())
    }

    /// Returns true if the bucket is full, like a new one.
    pub(super) fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.fill(rate, now) >= rate.burst
    }

    fn fill(&mut self, rate: Rate, now: Instant) -> f64 {
        let tokens = match self.filled {
            None => rate.burst,
            Some((tokens, then)) => {
                let passed = now.saturating_duration_since(then).as_secs_f64();
                // A rate that was lowered since the last update also lowers the saved tokens.
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
    fn tokens_refill_with_time() {
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
    fn amount_above_the_burst_delays_the_next_call() {
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
    fn rate_parses_with_and_without_a_burst() {
        assert_eq!("100".parse(), Ok(Rate::per_second(100)));
        assert_eq!("5:20".parse(), Ok(Rate::per_second(5).burst(20)));
        for text in ["", "0", "5:0", "-1", "5:", ":5", "5/s", "99999999999"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
