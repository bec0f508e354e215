//! CPU time per answer as the number of open connections grows, with only some of them active.

use std::time::Duration;

use clap::Args;

use super::cost::LOAD_SHARE;
use super::lineup::MANY;
use super::run::{Run, Setup, startup_time};
use super::{Benchmark, ChartOptions, Sampling};
use crate::contenders::{Contender, Transport};
use crate::environment::Cores;
use crate::load::{Kind, RunSpec};
use crate::report::{Column, Description, Part, Point, Sample, highest};

#[derive(Debug, Args)]
pub(crate) struct Growth {
    #[command(flatten)]
    sampling: Sampling,
    /// Numbers of open connections; connections are added step by step
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000, 15_000])]
    open: Vec<usize>,
    /// Numbers of active connections, at each step that has as many open
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000])]
    active: Vec<usize>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = MANY.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) chart: ChartOptions,
}

impl Growth {
    pub(crate) fn of(sampling: Sampling, open: &[usize], active: &[usize]) -> Self {
        Self {
            sampling,
            open: open.to_vec(),
            active: active.to_vec(),
            contenders: MANY.to_vec(),
            chart: ChartOptions { svg: None },
        }
    }

    /// Returns the pairs of open and active connections, in ascending order of the open ones,
    /// because connections are only added.
    fn steps(&self) -> Vec<(usize, usize)> {
        let mut open = self.open.clone();
        open.sort_unstable();
        let steps = open.iter().flat_map(|open| {
            let active = self.active.iter().filter(|active| *active <= open);
            active.map(|active| (*open, *active))
        });
        steps.collect()
    }

    /// Returns the steps within a contender's maximum number of connections.
    fn steps_of(&self, contender: Contender) -> impl Iterator<Item = (usize, usize)> {
        let has_room = move |step: &(usize, usize)| step.0 <= contender.max_connections();
        self.steps().into_iter().take_while(has_room)
    }
}

impl Benchmark for Growth {
    fn describe(&self) -> Description {
        let column = |(open, active): (usize, usize)| Column {
            name: format!("{open} open, {active} active"),
            point: Some(Point {
                line: format!("{active} active"),
                #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
                x: open as f64,
            }),
        };
        Description {
            name: "growth".into(),
            title: "Cost of an echo as open connections grow".into(),
            unit: "microseconds of the server's CPU time per echo".into(),
            method: format!(
                "Messages of 64 bytes over TCP. Connections are added to the same server. The \
                 active ones are spread evenly among the idle ones, and each sends as soon as it \
                 has the answer to its last message. {}",
                self.sampling.summary()
            ),
            baselines: vec![Contender::Green],
            notes: vec![crate::report::Note {
                name: "highest share of the load's core",
                aggregate: highest,
                ..LOAD_SHARE
            }],
            parts: vec![Part {
                name: "all steps".into(),
                columns: self.steps().into_iter().map(column).collect(),
            }],
        }
    }

    fn contenders(&self) -> &[Contender] {
        &self.contenders
    }

    fn rounds(&self) -> usize {
        self.sampling.rounds
    }

    fn includes(&self, contender: Contender, _: usize) -> bool {
        self.steps_of(contender).next().is_some()
    }

    fn duration(&self, contender: Contender, _: usize) -> Duration {
        let steps: Vec<_> = self.steps_of(contender).collect();
        let open = steps.last().map_or(0, |(open, _)| *open);
        let each = self.sampling.time() + self.sampling.warm_up();
        each * u32::try_from(steps.len()).unwrap_or(1) + startup_time(contender, open)
    }

    fn measure(&self, contender: Contender, _: usize, cores: Cores) -> anyhow::Result<Sample> {
        let setup = Setup {
            transport: Transport::Tcp,
            kind: Kind::Echo,
            clients: 1,
            size: 64,
            server_args: Vec::new(),
            load_args: vec!["--warm-up=0".into()],
        };
        let mut run = Run::start(contender, cores, setup)?;
        let (mut values, mut busiest) = (Vec::new(), 0.0_f64);
        for (open, active) in self.steps_of(contender) {
            let spec = |time| RunSpec { time, open, active };
            run.measure(spec(self.sampling.warm_up()))?;
            let result = run.measure(spec(self.sampling.time()))?;
            values.push(result.server / 1e3 / f64::from(result.outcome.answered));
            busiest = busiest.max(result.load_share);
        }
        Ok(Sample {
            values,
            notes: vec![busiest],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_only_add_connections_up_to_the_maximum() {
        let sampling = Sampling {
            rounds: 1,
            time: 1,
            warm_up: 1,
        };
        let growth = Growth::of(sampling, &[15_000, 100, 1000], &[100, 1000]);
        let steps = [
            (100, 100),
            (1000, 100),
            (1000, 1000),
            (15_000, 100),
            (15_000, 1000),
        ];
        assert_eq!(growth.steps(), steps);
        let threads: Vec<_> = growth.steps_of(Contender::Threading).collect();
        assert_eq!(threads, steps[..3]);
    }
}
