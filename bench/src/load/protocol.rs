//! The protocol between a benchmark and its load: one line of text per request and per answer.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};

/// One run of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunSpec {
    /// Duration; if it is zero, each client sends one message.
    pub(crate) time: Duration,
    /// Minimum number of open connections. Only the echo load can add connections.
    pub(crate) open: usize,
    /// Number of active connections, the others being idle; 0 for all.
    pub(crate) active: usize,
}

impl RunSpec {
    /// Creates a run with all existing connections.
    pub(crate) fn of(time: Duration) -> Self {
        Self {
            time,
            open: 0,
            active: 0,
        }
    }
}

impl fmt::Display for RunSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, open, active } = self;
        write!(f, "{} {open} {active}", time.as_millis())
    }
}

impl FromStr for RunSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let [time, open, active] = numbers(text)?;
        Ok(Self {
            time: Duration::from_millis(time),
            open: usize::try_from(open)?,
            active: usize::try_from(active)?,
        })
    }
}

/// Counts and delays of the requests of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) answered: u32,
    pub(crate) lost: u32,
    /// Zero, unless the load has a fixed rate.
    pub(crate) delays: Delays,
}

/// Percentiles of the answers' delays, and of the load's own lateness in sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delays {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
    /// 999 of 1,000 messages were sent no later than this after they were due.
    pub(crate) load_p999: Duration,
}

impl Delays {
    pub(crate) fn of(answers: &mut [Duration], lateness: &mut [Duration]) -> Self {
        answers.sort_unstable();
        lateness.sort_unstable();
        Self {
            p50: percentile(answers, 500),
            p99: percentile(answers, 990),
            p999: percentile(answers, 999),
            load_p999: percentile(lateness, 999),
        }
    }
}

/// Returns the smallest element that is not below `per_mille` thousandths of all; zero if empty.
fn percentile(sorted: &[Duration], per_mille: usize) -> Duration {
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Delays {
            p50,
            p99,
            p999,
            load_p999,
        } = self.delays;
        write!(f, "{} {}", self.answered, self.lost)?;
        for delay in [p50, p99, p999, load_p999] {
            write!(f, " {}", delay.as_nanos())?;
        }
        Ok(())
    }
}

impl FromStr for Outcome {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let [answered, lost, p50, p99, p999, load_p999] = numbers(text)?;
        let [p50, p99, p999, load_p999] = [p50, p99, p999, load_p999].map(Duration::from_nanos);
        Ok(Self {
            answered: u32::try_from(answered)?,
            lost: u32::try_from(lost)?,
            delays: Delays {
                p50,
                p99,
                p999,
                load_p999,
            },
        })
    }
}

fn numbers<const N: usize>(text: &str) -> anyhow::Result<[u64; N]> {
    let parsed: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
    let Ok(numbers) = parsed.with_context(|| format!("{text:?}"))?.try_into() else {
        bail!("{text:?} must have {N} numbers");
    };
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_and_outcomes_round_trip() {
        let spec = RunSpec {
            time: Duration::from_millis(1500),
            open: 15_000,
            active: 100,
        };
        assert_eq!(spec.to_string().parse::<RunSpec>().unwrap(), spec);
        let [p50, p99, p999, load_p999] = [1, 2, 3, 4].map(Duration::from_nanos);
        let outcome = Outcome {
            answered: 7,
            lost: 8,
            delays: Delays {
                p50,
                p99,
                p999,
                load_p999,
            },
        };
        assert_eq!(outcome.to_string().parse::<Outcome>().unwrap(), outcome);
        assert!("1 2".parse::<RunSpec>().is_err());
        assert!("1 2 x".parse::<RunSpec>().is_err());
    }

    #[test]
    fn percentiles_use_the_nearest_rank() {
        let sorted: Vec<_> = (1..=1000).map(Duration::from_nanos).collect();
        assert_eq!(percentile(&sorted, 500), sorted[499]);
        assert_eq!(percentile(&sorted, 999), sorted[998]);
        assert_eq!(percentile(&sorted[..10], 999), sorted[9]);
        assert_eq!(percentile(&[], 500), Duration::ZERO);
    }
}
