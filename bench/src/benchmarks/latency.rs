//! Latency of answers at a fixed message rate (open loop).

use std::time::Duration;

use clap::Args;

use super::cost::LOAD_SHARE;
use super::lineup::STREAMS;
use super::run::{Run, Setup, startup_time};
use super::{Benchmark, ChartOptions, Sampling};
use crate::contenders::{Contender, Transport};
use crate::environment::Cores;
use crate::load::{Delays, Kind, RunSpec};
use crate::report::{Column, Description, Note, Part, Sample, median};

#[derive(Debug, Args)]
pub(crate) struct Latency {
    #[command(flatten)]
    sampling: Sampling,
    /// Messages per second, over all connections in turn
    #[arg(long, default_value_t = 5000)]
    rate: u32,
    /// Number of connections
    #[arg(long, default_value_t = 50)]
    connections: usize,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = STREAMS.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) chart: ChartOptions,
}

impl Latency {
    pub(crate) fn of(sampling: Sampling, rate: u32, connections: usize) -> Self {
        Self {
            sampling,
            rate,
            connections,
            contenders: STREAMS.to_vec(),
            chart: ChartOptions { svg: None },
        }
    }
}

impl Benchmark for Latency {
    fn describe(&self) -> Description {
        let Self {
            rate, connections, ..
        } = self;
        let column = |name: &str| Column {
            name: name.into(),
            point: None,
        };
        Description {
            name: format!("latency-{rate}"),
            title: format!("Latency at {rate} messages per second over TCP"),
            unit: "microseconds from when a message was due until its answer arrived".into(),
            method: format!(
                "Messages of 64 bytes are due at fixed times, on {connections} connections in \
                 turn, and are sent whether or not earlier answers have arrived. The load never \
                 sleeps. {}",
                self.sampling.summary()
            ),
            baselines: vec![Contender::Green],
            notes: vec![
                Note {
                    name: "lateness of the load in sending, p99.9 in microseconds",
                    aggregate: median,
                    format: |late| format!("{late:.1}"),
                },
                Note {
                    name: "server's share of its core",
                    aggregate: median,
                    format: |share| format!("{:.0} %", 100.0 * share),
                },
                LOAD_SHARE,
            ],
            parts: vec![Part {
                name: format!("{rate}/s"),
                columns: ["p50", "p99", "p99.9"].map(column).into(),
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
        self.connections <= contender.max_connections()
    }

    fn duration(&self, contender: Contender, _: usize) -> Duration {
        self.sampling.time() + self.sampling.warm_up() + startup_time(contender, self.connections)
    }

    fn measure(&self, contender: Contender, _: usize, cores: Cores) -> anyhow::Result<Sample> {
        let setup = Setup {
            transport: Transport::Tcp,
            kind: Kind::OpenLoop,
            clients: self.connections,
            size: 64,
            server_args: Vec::new(),
            load_args: vec![
                format!("--rate={}", self.rate),
                format!("--warm-up={}", self.sampling.warm_up),
            ],
        };
        let run =
            Run::start(contender, cores, setup)?.measure(RunSpec::of(self.sampling.time()))?;
        let Delays {
            p50,
            p99,
            p999,
            load_p999,
        } = run.outcome.delays;
        let microseconds = |delay: Duration| delay.as_secs_f64() * 1e6;
        Ok(Sample {
            values: [p50, p99, p999].map(microseconds).into(),
            notes: vec![microseconds(load_p999), run.server_share, run.load_share],
        })
    }
}
