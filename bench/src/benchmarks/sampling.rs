//! Number and duration of the measurements.

use std::time::Duration;

use clap::Args;

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Sampling {
    /// Number of rounds; the table shows the median, the lowest and the highest value
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Duration of each measurement, in milliseconds
    #[arg(long, default_value_t = 1000)]
    pub(crate) time: u64,
    /// Warm-up before each measurement, in milliseconds
    #[arg(long, default_value_t = 250)]
    pub(crate) warm_up: u64,
}

impl Sampling {
    pub(super) fn time(self) -> Duration {
        Duration::from_millis(self.time)
    }

    pub(super) fn warm_up(self) -> Duration {
        Duration::from_millis(self.warm_up)
    }

    pub(super) fn summary(self) -> String {
        let Self { rounds, time, .. } = self;
        if rounds > 1 {
            format!("Median (lowest to highest) of {rounds} interleaved rounds of {time} ms each.")
        } else {
            format!("One round of {time} ms each.")
        }
    }
}
