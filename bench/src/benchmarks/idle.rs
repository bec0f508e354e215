//! Memory of idle connections.

use std::time::Duration;

use clap::Args;

use super::lineup::MANY;
use super::run::{Run, Setup, startup_time};
use super::{Benchmark, ChartOptions};
use crate::contenders::{Contender, Transport};
use crate::environment::Cores;
use crate::load::{Kind, RunSpec};
use crate::report::{Column, Description, Note, Part, Sample, median};

#[derive(Debug, Args)]
pub(crate) struct Idle {
    /// Number of open connections
    #[arg(long, default_value_t = 15_000)]
    connections: usize,
    /// Duration of the final run with all connections active, in milliseconds
    #[arg(long, default_value_t = 1000)]
    time: u64,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = MANY.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) chart: ChartOptions,
}

impl Idle {
    pub(crate) fn of(connections: usize, time: u64) -> Self {
        Self {
            connections,
            time,
            contenders: MANY.to_vec(),
            chart: ChartOptions { svg: None },
        }
    }

    fn connections(&self, contender: Contender) -> usize {
        self.connections.min(contender.max_connections()).max(2)
    }
}

impl Benchmark for Idle {
    fn describe(&self) -> Description {
        let name = format!("up to {} connections", self.connections);
        Description {
            name: "idle".into(),
            title: "Memory of idle connections".into(),
            unit: "KiB of private memory per connection".into(),
            method: "Private memory of the server process and its children with all connections, \
                     minus the same with one connection, per added connection. Each connection has \
                     had one echo of 64 bytes. Kernel memory, such as kernel stacks and sockets, \
                     is not included. There is one round."
                .into(),
            baselines: vec![Contender::Green],
            notes: vec![
                Note {
                    name: "connections",
                    aggregate: median,
                    format: |count| format!("{count:.0}"),
                },
                Note {
                    name: "answers per second with all of them active",
                    aggregate: median,
                    format: |count| format!("{count:.0}/s"),
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

    /// The result is the same in each round, or nearly so.
    fn rounds(&self) -> usize {
        1
    }

    fn duration(&self, contender: Contender, _: usize) -> Duration {
        Duration::from_millis(self.time) + 2 * startup_time(contender, self.connections)
    }

    fn measure(&self, contender: Contender, _: usize, cores: Cores) -> anyhow::Result<Sample> {
        let connections = self.connections(contender);
        let setup = Setup {
            transport: Transport::Tcp,
            kind: Kind::Echo,
            clients: 1,
            size: 64,
            server_args: Vec::new(),
            load_args: vec!["--warm-up=0".into()],
        };
        let mut run = Run::start(contender, cores, setup)?;
        let before = run.server.private_memory()?;
        run.measure(RunSpec {
            time: Duration::ZERO,
            open: connections,
            active: 0,
        })?;
        let after = run.server.private_memory()?;
        let active = run.measure(RunSpec::of(Duration::from_millis(self.time)))?;
        #[expect(clippy::cast_precision_loss, reason = "kibibytes for a table")]
        let (more, connections) = (after.saturating_sub(before) as f64, connections as f64);
        Ok(Sample {
            values: vec![more / (connections - 1.0)],
            notes: vec![
                connections,
                f64::from(active.outcome.answered) / active.elapsed.as_secs_f64(),
            ],
        })
    }
}
