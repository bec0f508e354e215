//! Reports the progress and the expected duration on stderr.

use std::io::{self, Write};
use std::time::{Duration, Instant};

pub(crate) struct Progress {
    started: Instant,
    /// Expected duration of all work, and of the completed work.
    total: Duration,
    completed: Duration,
    out: Box<dyn Write>,
}

impl Progress {
    pub(crate) fn start(total: Duration, out: impl Write + 'static) -> io::Result<Self> {
        let mut out = Box::new(out);
        writeln!(out, "this takes about {}", clock(total))?;
        Ok(Self {
            started: Instant::now(),
            total,
            completed: Duration::ZERO,
            out,
        })
    }

    /// Records that work with this expected duration is complete.
    pub(crate) fn complete(&mut self, expected: Duration) {
        self.completed += expected;
    }

    pub(crate) fn report(&mut self, message: &str) -> io::Result<()> {
        let elapsed = self.started.elapsed();
        let total = clock(elapsed + self.remaining());
        writeln!(self.out, "[{} of about {total}] {message}", clock(elapsed))
    }

    /// Estimates the remaining time from the speed so far.
    fn remaining(&self) -> Duration {
        let remaining = self.total.saturating_sub(self.completed);
        if self.completed < Duration::from_secs(5) {
            return remaining;
        }
        remaining.mul_f64(self.started.elapsed().as_secs_f64() / self.completed.as_secs_f64())
    }
}

/// Formats a duration as minutes and seconds.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = (time + Duration::from_millis(500)).as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_rounds_to_seconds() {
        assert_eq!(clock(Duration::from_millis(59_400)), "0:59");
        assert_eq!(clock(Duration::from_millis(61_500)), "1:02");
    }
}
