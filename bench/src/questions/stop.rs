//! How long a server takes to stop.

use std::time::Duration;

use clap::Args;

use super::bout::{Bout, Setup, overhead};
use super::field::STOP;
use super::{Picture, Question};
use crate::contenders::{Contender, Wire};
use crate::load::Kind;
use crate::machine::Cores;
use crate::report::{Column, Part, Sample, Subject};

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// How many rounds; the median is shown, with the lowest and the highest
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many connections are open, and silent
    #[arg(long, value_delimiter = ',', default_values_t = [0, 30])]
    connections: Vec<usize>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = STOP.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) picture: Picture,
}

impl Stop {
    pub(crate) fn of(rounds: usize, connections: &[usize]) -> Self {
        Self {
            rounds,
            connections: connections.to_vec(),
            contenders: STOP.to_vec(),
            picture: Picture { svg: None },
        }
    }
}

impl Question for Stop {
    fn subject(&self) -> Subject {
        let part = |connections: &usize| {
            let name = match connections {
                0 => "no connection".to_owned(),
                _ => format!("{connections} silent connections"),
            };
            Part {
                name: name.clone(),
                columns: vec![Column { name, point: None }],
            }
        };
        let rounds = self.rounds;
        Subject {
            name: "stop".into(),
            title: "Time to stop".into(),
            unit: "milliseconds from SIGTERM to the end of the process".into(),
            method: format!(
                "Each stops in its own orderly way, as its documentation shows it, without waiting \
                 for clients; who has no such way is not in the table. Median (lowest to highest) \
                 of interleaved rounds: {rounds}."
            ),
            bases: vec![Contender::Green],
            asides: Vec::new(),
            parts: self.connections.iter().map(part).collect(),
        }
    }

    fn contenders(&self) -> &[Contender] {
        &self.contenders
    }

    fn rounds(&self) -> usize {
        self.rounds
    }

    fn admits(&self, contender: Contender, part: usize) -> bool {
        // A sequential server is stopped by a handler's end, or not from its own loop.
        let room = match contender {
            Contender::Sequential => 0,
            other => other.capacity(),
        };
        contender.stops() && self.connections[part] <= room
    }

    fn duration(&self, contender: Contender, _: usize) -> Duration {
        let stop = match contender {
            // It looks every half a second.
            Contender::PythonThreading => 350,
            _ => 50,
        };
        Duration::from_millis(stop + 50) + overhead(contender, 0)
    }

    fn measure(&self, contender: Contender, part: usize, cores: Cores) -> anyhow::Result<Sample> {
        let connections = self.connections[part];
        // One at least, so that it serves by the time it is stopped.
        let setup = Setup {
            wire: Wire::Tcp,
            kind: Kind::Echo,
            clients: connections.max(1),
            size: 64,
            serve: vec!["--stop"],
            load: vec!["--warm-up=0".into()],
        };
        let mut bout = Bout::start(contender, cores, setup)?;
        if connections == 0 {
            bout.end_load();
        }
        bout.settle()?;
        let took = bout.stop_server()?;
        Ok(Sample {
            values: vec![took.as_secs_f64() * 1e3],
            asides: Vec::new(),
        })
    }
}
