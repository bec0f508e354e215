//! What an answer costs as more and more connections are open, and only some of them talk.

use std::time::Duration;

use clap::Args;

use super::bout::{Bout, Setup, overhead};
use super::cost::LOAD_SHARE;
use super::field::MANY;
use super::{Method, Picture, Question};
use crate::contenders::{Contender, Wire};
use crate::load::{Kind, Order};
use crate::machine::Cores;
use crate::report::{Column, Part, Point, Sample, Subject, highest};

#[derive(Debug, Args)]
pub(crate) struct Growth {
    #[command(flatten)]
    method: Method,
    /// How many connections are open, ever more
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000, 15_000])]
    open: Vec<usize>,
    /// How many of them talk; where as many are open
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000])]
    active: Vec<usize>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = MANY.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) picture: Picture,
}

impl Growth {
    pub(crate) fn of(method: Method, open: &[usize], active: &[usize]) -> Self {
        Self {
            method,
            open: open.to_vec(),
            active: active.to_vec(),
            contenders: MANY.to_vec(),
            picture: Picture { svg: None },
        }
    }

    /// How many are open, and how many of these active: as connections are only added, in the order
    /// of the former.
    fn steps(&self) -> Vec<(usize, usize)> {
        let mut open = self.open.clone();
        open.sort_unstable();
        let steps = open.iter().flat_map(|open| {
            let active = self.active.iter().filter(|active| *active <= open);
            active.map(|active| (*open, *active))
        });
        steps.collect()
    }

    /// The steps that a contender has room for.
    fn steps_of(&self, contender: Contender) -> impl Iterator<Item = (usize, usize)> {
        let has_room = move |step: &(usize, usize)| step.0 <= contender.capacity();
        self.steps().into_iter().take_while(has_room)
    }
}

impl Question for Growth {
    fn subject(&self) -> Subject {
        let column = |(open, active): (usize, usize)| Column {
            name: format!("{open} open, {active} active"),
            point: Some(Point {
                line: format!("{active} active"),
                #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
                x: open as f64,
            }),
        };
        Subject {
            name: "growth".into(),
            title: "Cost of an echo as open connections grow".into(),
            unit: "microseconds of the server's CPU time per echo".into(),
            method: format!(
                "Of 64 bytes, over TCP. Connections are added to one and the same server; the \
                 active ones lie evenly among the others, which are silent, and each sends when \
                 its last answer has come. {}",
                self.method.describe()
            ),
            bases: vec![Contender::Green],
            asides: vec![crate::report::Aside {
                name: "the load's share of its core, at its highest",
                fold: highest,
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
        self.method.rounds
    }

    fn admits(&self, contender: Contender, _: usize) -> bool {
        self.steps_of(contender).next().is_some()
    }

    fn duration(&self, contender: Contender, _: usize) -> Duration {
        let steps: Vec<_> = self.steps_of(contender).collect();
        let open = steps.last().map_or(0, |(open, _)| *open);
        let each = self.method.time() + self.method.warm_up();
        each * u32::try_from(steps.len()).unwrap_or(1) + overhead(contender, open)
    }

    fn measure(&self, contender: Contender, _: usize, cores: Cores) -> anyhow::Result<Sample> {
        let setup = Setup {
            wire: Wire::Tcp,
            kind: Kind::Echo,
            clients: 1,
            size: 64,
            serve: Vec::new(),
            load: vec!["--warm-up=0".into()],
        };
        let mut bout = Bout::start(contender, cores, setup)?;
        let (mut values, mut busiest) = (Vec::new(), 0.0_f64);
        for (open, active) in self.steps_of(contender) {
            let order = |time| Order { time, open, active };
            bout.run(order(self.method.warm_up()))?;
            let run = bout.run(order(self.method.time()))?;
            values.push(run.server / 1e3 / f64::from(run.outcome.answered));
            busiest = busiest.max(run.load_share);
        }
        Ok(Sample {
            values,
            asides: vec![busiest],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_only_add_connections_and_end_where_there_is_no_room() {
        let method = Method {
            rounds: 1,
            time: 1,
            warm_up: 1,
        };
        let growth = Growth::of(method, &[15_000, 100, 1000], &[100, 1000]);
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
