//! The memory of connections that are silent.

use std::time::Duration;

use clap::Args;

use super::bout::{Bout, Setup, overhead};
use super::field::MANY;
use super::{Picture, Question};
use crate::contenders::{Contender, Wire};
use crate::load::{Kind, Order};
use crate::machine::Cores;
use crate::report::{Aside, Column, Part, Sample, Subject, median};

#[derive(Debug, Args)]
pub(crate) struct Idle {
    #[arg(long, default_value_t = 15_000)]
    connections: usize,
    /// How long all of them talk at last, in milliseconds
    #[arg(long, default_value_t = 1000)]
    time: u64,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = MANY.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) picture: Picture,
}

impl Idle {
    pub(crate) fn of(connections: usize, time: u64) -> Self {
        Self {
            connections,
            time,
            contenders: MANY.to_vec(),
            picture: Picture { svg: None },
        }
    }

    fn connections(&self, contender: Contender) -> usize {
        self.connections.min(contender.capacity()).max(2)
    }
}

impl Question for Idle {
    fn subject(&self) -> Subject {
        let name = format!("up to {} connections", self.connections);
        Subject {
            name: "idle".into(),
            title: "Memory of connections that are silent".into(),
            unit: "KiB of private memory for each connection".into(),
            method: "What the server process, and its children if it has any, have more with all \
                     connections than with one. Each has had one echo of 64 bytes. Memory of the \
                     kernel, such as a thread's second stack and the sockets, is not in it. There \
                     is one round."
                .into(),
            bases: vec![Contender::Green],
            asides: vec![
                Aside {
                    name: "connections",
                    fold: median,
                    show: |count| format!("{count:.0}"),
                },
                Aside {
                    name: "answers per second when all of them talk at once",
                    fold: median,
                    show: |count| format!("{count:.0}/s"),
                },
            ],
            parts: vec![Part {
                name: name.clone(),
                columns: vec![Column { name, point: None }],
            }],
        }
    }

    fn contenders(&self) -> &[Contender] {
        &self.contenders
    }

    /// It is the same in each, or nearly so.
    fn rounds(&self) -> usize {
        1
    }

    fn duration(&self, contender: Contender, _: usize) -> Duration {
        Duration::from_millis(self.time) + 2 * overhead(contender, self.connections)
    }

    fn measure(&self, contender: Contender, _: usize, cores: Cores) -> anyhow::Result<Sample> {
        let connections = self.connections(contender);
        let setup = Setup {
            wire: Wire::Tcp,
            kind: Kind::Echo,
            clients: 1,
            size: 64,
            serve: Vec::new(),
            load: vec!["--warm-up=0".into()],
        };
        let mut bout = Bout::start(contender, cores, setup)?;
        let before = bout.server.private_memory()?;
        bout.run(Order {
            time: Duration::ZERO,
            open: connections,
            active: 0,
        })?;
        let after = bout.server.private_memory()?;
        let talk = bout.run(Order::of(Duration::from_millis(self.time)))?;
        #[expect(clippy::cast_precision_loss, reason = "kibibytes for a table")]
        let (more, connections) = (after.saturating_sub(before) as f64, connections as f64);
        Ok(Sample {
            values: vec![more / (connections - 1.0)],
            asides: vec![
                connections,
                f64::from(talk.outcome.answered) / talk.elapsed.as_secs_f64(),
            ],
        })
    }
}
