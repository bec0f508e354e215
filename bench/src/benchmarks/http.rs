//! CPU time of a file over HTTP, and requests per second.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;

use super::cost::LOAD_SHARE;
use super::lineup::HTTP;
use super::run::{Run, Setup, startup_time};
use super::{Benchmark, ChartOptions, Sampling};
use crate::contenders::{Contender, Transport};
use crate::environment::Cores;
use crate::load::{Kind, RunSpec};
use crate::report::{Column, Description, Note, Part, Sample, median};

#[derive(Debug, Args)]
pub(crate) struct Http {
    #[command(flatten)]
    sampling: Sampling,
    /// Sizes of files in bytes, each with a number of connections
    #[arg(
        long,
        value_name = "SIZE:CONNECTIONS",
        value_delimiter = ',',
        default_values_t = [Case { size: 1 << 10, clients: 50 }, Case { size: 1 << 20, clients: 10 }]
    )]
    cases: Vec<Case>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = HTTP.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) chart: ChartOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    size: usize,
    clients: usize,
}

impl Http {
    /// Creates the benchmark from pairs of a file size and a number of connections.
    pub(crate) fn of(sampling: Sampling, cases: &[(usize, usize)]) -> Self {
        let case = |&(size, clients): &(usize, usize)| Case { size, clients };
        Self {
            sampling,
            cases: cases.iter().map(case).collect(),
            contenders: HTTP.to_vec(),
            chart: ChartOptions { svg: None },
        }
    }
}

impl Case {
    fn name(self) -> String {
        let Self { size, clients } = self;
        let size = match size {
            _ if size > 0 && size.is_multiple_of(1 << 20) => format!("{} MiB", size >> 20),
            _ if size > 0 && size.is_multiple_of(1 << 10) => format!("{} KiB", size >> 10),
            _ => format!("{size} bytes"),
        };
        format!("{size}, C = {clients}")
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.size, self.clients)
    }
}

impl FromStr for Case {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (size, clients) = text
            .split_once(':')
            .context("expected SIZE:CONNECTIONS, for example 1024:50")?;
        let (size, clients) = (size.parse()?, clients.parse()?);
        ensure!(clients > 0, "the number of connections must be at least 1");
        Ok(Self { size, clients })
    }
}

impl Benchmark for Http {
    fn describe(&self) -> Description {
        let part = |case: &Case| {
            let column = |what| Column {
                name: format!("{}: {what}", case.name()),
                point: None,
            };
            Part {
                name: case.name(),
                columns: ["CPU time", "requests/s"].map(column).into(),
            }
        };
        Description {
            name: "http".into(),
            title: "Files over HTTP/1.1".into(),
            unit: "microseconds of the server's CPU time per request, and requests per second"
                .into(),
            method: format!(
                "Each connection stays open, and requests the same file again once it is complete. \
                 No server writes an access log. {}",
                self.sampling.summary()
            ),
            baselines: vec![Contender::Green, Contender::Nginx],
            notes: vec![
                LOAD_SHARE,
                Note {
                    name: "server's share of its core",
                    aggregate: median,
                    format: |share| format!("{:.0} %", 100.0 * share),
                },
                Note {
                    name: "MiB of files per second",
                    aggregate: median,
                    format: |rate| format!("{rate:.0} MiB/s"),
                },
            ],
            parts: self.cases.iter().map(part).collect(),
        }
    }

    fn transport(&self) -> Transport {
        Transport::Http
    }

    fn contenders(&self) -> &[Contender] {
        &self.contenders
    }

    fn rounds(&self) -> usize {
        self.sampling.rounds
    }

    fn duration(&self, contender: Contender, part: usize) -> Duration {
        let clients = self.cases[part].clients;
        self.sampling.time() + self.sampling.warm_up() + startup_time(contender, clients)
    }

    fn measure(&self, contender: Contender, part: usize, cores: Cores) -> anyhow::Result<Sample> {
        let Case { size, clients } = self.cases[part];
        let setup = Setup {
            transport: Transport::Http,
            kind: Kind::Http,
            clients,
            size,
            server_args: Vec::new(),
            load_args: vec![format!("--warm-up={}", self.sampling.warm_up)],
        };
        let run =
            Run::start(contender, cores, setup)?.measure(RunSpec::of(self.sampling.time()))?;
        let answered = f64::from(run.outcome.answered);
        let rate = answered / run.elapsed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "exact up to eight million GiB")]
        let mebibytes = size as f64 / f64::from(1 << 20);
        Ok(Sample {
            values: vec![run.server / 1e3 / answered, rate],
            notes: vec![run.load_share, run.server_share, rate * mebibytes],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_round_trip() {
        let case = Case {
            size: 1 << 20,
            clients: 10,
        };
        assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
        assert_eq!(case.name(), "1 MiB, C = 10");
        for wrong in ["", "1024", "1024:", "x:1", "1024:0"] {
            assert!(wrong.parse::<Case>().is_err(), "{wrong}");
        }
    }
}
