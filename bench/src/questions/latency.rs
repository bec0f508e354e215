//! How late answers are when messages come at a fixed rate.

use std::time::Duration;

use clap::Args;

use super::bout::{Bout, Setup, overhead};
use super::cost::LOAD_SHARE;
use super::field::STREAMS;
use super::{Method, Picture, Question};
use crate::contenders::{Contender, Wire};
use crate::load::{Delays, Kind, Order};
use crate::machine::Cores;
use crate::report::{Aside, Column, Part, Sample, Subject, median};

#[derive(Debug, Args)]
pub(crate) struct Latency {
    #[command(flatten)]
    method: Method,
    /// How many messages are sent in a second, on all connections in turn
    #[arg(long, default_value_t = 5000)]
    rate: u32,
    #[arg(long, default_value_t = 50)]
    connections: usize,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = STREAMS.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) picture: Picture,
}

impl Latency {
    pub(crate) fn of(method: Method, rate: u32, connections: usize) -> Self {
        Self {
            method,
            rate,
            connections,
            contenders: STREAMS.to_vec(),
            picture: Picture { svg: None },
        }
    }
}

impl Question for Latency {
    fn subject(&self) -> Subject {
        let Self {
            rate, connections, ..
        } = self;
        let column = |name: &str| Column {
            name: name.into(),
            point: None,
        };
        Subject {
            name: format!("latency-{rate}"),
            title: format!("Latency at {rate} messages a second over TCP"),
            unit: "microseconds from when a message was due until its answer was there".into(),
            method: format!(
                "Messages of 64 bytes are due at fixed times, on {connections} connections in \
                 turn, and are sent whether or not the answers to earlier ones have come. The load \
                 never sleeps. {}",
                self.method.describe()
            ),
            bases: vec![Contender::Green],
            asides: vec![
                Aside {
                    name: "how late the load itself sent, p99.9 in microseconds",
                    fold: median,
                    show: |late| format!("{late:.1}"),
                },
                Aside {
                    name: "the server's share of its core",
                    fold: median,
                    show: |share| format!("{:.0} %", 100.0 * share),
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
        self.method.rounds
    }

    fn admits(&self, contender: Contender, _: usize) -> bool {
        self.connections <= contender.capacity()
    }

    fn duration(&self, contender: Contender, _: usize) -> Duration {
        self.method.time() + self.method.warm_up() + overhead(contender, self.connections)
    }

    fn measure(&self, contender: Contender, _: usize, cores: Cores) -> anyhow::Result<Sample> {
        let setup = Setup {
            wire: Wire::Tcp,
            kind: Kind::Paced,
            clients: self.connections,
            size: 64,
            serve: Vec::new(),
            load: vec![
                format!("--rate={}", self.rate),
                format!("--warm-up={}", self.method.warm_up),
            ],
        };
        let run = Bout::start(contender, cores, setup)?.run(Order::of(self.method.time()))?;
        let Delays {
            p50,
            p99,
            p999,
            load_p999,
        } = run.outcome.delays;
        let microseconds = |delay: Duration| delay.as_secs_f64() * 1e6;
        Ok(Sample {
            values: [p50, p99, p999].map(microseconds).into(),
            asides: vec![microseconds(load_p999), run.server_share, run.load_share],
        })
    }
}
