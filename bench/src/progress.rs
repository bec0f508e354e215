//! Tells whoever waits how far it is, and how long it will take.

use std::io::{self, Write};
use std::time::{Duration, Instant};

pub(crate) struct Progress {
    begun: Instant,
    /// What was expected of all of it, and of what is done.
    total: Duration,
    done: Duration,
    out: Box<dyn Write>,
}

impl Progress {
    pub(crate) fn begin(total: Duration, out: impl Write + 'static) -> io::Result<Self> {
        let mut out = Box::new(out);
        writeln!(out, "this takes about {}", clock(total))?;
        Ok(Self {
            begun: Instant::now(),
            total,
            done: Duration::ZERO,
            out,
        })
    }

    /// Something that was expected to take so long is done.
    pub(crate) fn done(&mut self, expected: Duration) {
        self.done += expected;
    }

    pub(crate) fn tell(&mut self, what: &str) -> io::Result<()> {
        let elapsed = self.begun.elapsed();
        let total = clock(elapsed + self.left());
        writeln!(self.out, "[{} of about {total}] {what}", clock(elapsed))
    }

    /// As slow, or quick, as it was up to now.
    fn left(&self) -> Duration {
        let left = self.total.saturating_sub(self.done);
        if self.done < Duration::from_secs(5) {
            return left;
        }
        left.mul_f64(self.begun.elapsed().as_secs_f64() / self.done.as_secs_f64())
    }
}

/// In minutes and seconds.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = (time + Duration::from_millis(500)).as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        assert_eq!(clock(Duration::from_millis(59_400)), "0:59");
        assert_eq!(clock(Duration::from_millis(61_500)), "1:02");
    }
}
