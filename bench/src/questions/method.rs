//! For how long, and how often.

use std::time::Duration;

use clap::Args;

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Method {
    /// How many rounds; the median is shown, with the lowest and the highest
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// How long each measurement takes, in milliseconds
    #[arg(long, default_value_t = 1000)]
    pub(crate) time: u64,
    /// How long the load runs before each, in milliseconds
    #[arg(long, default_value_t = 250)]
    pub(crate) warm_up: u64,
}

impl Method {
    pub(super) fn time(self) -> Duration {
        Duration::from_millis(self.time)
    }

    pub(super) fn warm_up(self) -> Duration {
        Duration::from_millis(self.warm_up)
    }

    pub(super) fn describe(self) -> String {
        let Self { rounds, time, .. } = self;
        if rounds > 1 {
            format!("Median (lowest to highest) of {rounds} interleaved rounds of {time} ms each.")
        } else {
            format!("One round of {time} ms each.")
        }
    }
}
