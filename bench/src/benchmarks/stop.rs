//! Time that a server takes to stop.

use std::time::Duration;

use clap::Args;

use super::lineup::STOP;
use super::run::{Run, Setup, startup_time};
use super::{Benchmark, ChartOptions};
use crate::contenders::{Contender, Transport};
use crate::environment::Cores;
use crate::load::Kind;
use crate::report::{Column, Description, Part, Sample};

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Number of rounds; the table shows the median, the lowest and the highest value
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Numbers of open, idle connections
    #[arg(long, value_delimiter = ',', default_values_t = [0, 30])]
    connections: Vec<usize>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = STOP.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) chart: ChartOptions,
}

impl Stop {
    pub(crate) fn of(rounds: usize, connections: &[usize]) -> Self {
        Self {
            rounds,
            connections: connections.to_vec(),
            contenders: STOP.to_vec(),
            chart: ChartOptions { svg: None },
        }
    }
}

impl Benchmark for Stop {
    fn describe(&self) -> Description {
        let part = |connections: &usize| {
            let name = match connections {
                0 => "no connection".to_owned(),
                _ => format!("{connections} idle connections"),
            };
            Part {
                name: name.clone(),
                columns: vec![Column { name, point: None }],
            }
        };
        let rounds = self.rounds;
        Description {
            name: "stop".into(),
            title: "Time to stop".into(),
            unit: "milliseconds from SIGTERM to the end of the process".into(),
            method: format!(
                "Each server stops cleanly, as its documentation shows, without waiting for \
                 clients. Servers without such a way are left out. Median (lowest to highest) of \
                 {rounds} interleaved rounds."
            ),
            baselines: vec![Contender::Green],
            notes: Vec::new(),
            parts: self.connections.iter().map(part).collect(),
        }
    }

    fn contenders(&self) -> &[Contender] {
        &self.contenders
    }

    fn rounds(&self) -> usize {
        self.rounds
    }

    fn includes(&self, contender: Contender, part: usize) -> bool {
        // A sequential server runs its handler in the loop that would stop it.
        let room = match contender {
            Contender::Sequential => 0,
            other => other.max_connections(),
        };
        contender.has_clean_stop() && self.connections[part] <= room
    }

    fn duration(&self, contender: Contender, _: usize) -> Duration {
        let stop = match contender {
            // `serve_forever` checks for the stop every half a second.
            Contender::PythonThreading => 350,
            _ => 50,
        };
        Duration::from_millis(stop + 50) + startup_time(contender, 0)
    }

    fn measure(&self, contender: Contender, part: usize, cores: Cores) -> anyhow::Result<Sample> {
        let connections = self.connections[part];
        // One connection at least, so that the server is serving when it is stopped.
        let setup = Setup {
            transport: Transport::Tcp,
            kind: Kind::Echo,
            clients: connections.max(1),
            size: 64,
            server_args: vec!["--stop"],
            load_args: vec!["--warm-up=0".into()],
        };
        let mut run = Run::start(contender, cores, setup)?;
        if connections == 0 {
            run.stop_load();
        }
        run.wait_until_idle()?;
        let took = run.stop_server()?;
        Ok(Sample {
            values: vec![took.as_secs_f64() * 1e3],
            notes: Vec::new(),
        })
    }
}
