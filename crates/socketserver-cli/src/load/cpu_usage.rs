//! The CPU time of the load tool itself, so that its limits are not mistaken for those of the
//! server.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// The CPU usage of a thread, in total or within a period.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuUsage {
    pub(super) user: Duration,
    pub(super) system: Duration,
    /// The time during which the thread was ready to run and had no core. `None` if the kernel does
    /// not count it.
    pub(super) run_queue_delay: Option<Duration>,
}

impl CpuUsage {
    /// Returns the usage of the calling thread.
    pub(super) fn by_this_thread() -> Self {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else {
            return Self::default();
        };
        let micros = |n: i64| Duration::from_micros(u64::try_from(n).unwrap_or(0));
        Self {
            user: micros(usage.user_time().num_microseconds()),
            system: micros(usage.system_time().num_microseconds()),
            run_queue_delay: run_queue_delay(),
        }
    }

    pub(super) fn since(self, before: Self) -> Self {
        let run_queue_delay = self.run_queue_delay.zip(before.run_queue_delay);
        Self {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
            run_queue_delay: run_queue_delay.map(|(now, before)| now.saturating_sub(before)),
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.user += other.user;
        self.system += other.system;
    }

    pub(super) fn total(self) -> Duration {
        self.user + self.system
    }
}

/// The second number of proc(5), `schedstat`: nanoseconds spent waiting on a run queue.
fn run_queue_delay() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let waited = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(waited))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_this_thread_counts_cpu_time() {
        let before = CpuUsage::by_this_thread();
        let mut now = before;
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while now.since(before).total() < Duration::from_millis(5) {
            assert!(std::time::Instant::now() < end);
            now = CpuUsage::by_this_thread();
        }
    }
}
