//! What a file costs over HTTP, and how many go out in a second.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;

use super::bout::{Bout, Setup, overhead};
use super::cost::LOAD_SHARE;
use super::field::HTTP;
use super::{Method, Picture, Question};
use crate::contenders::{Contender, Wire};
use crate::load::{Kind, Order};
use crate::machine::Cores;
use crate::report::{Aside, Column, Part, Sample, Subject, median};

#[derive(Debug, Args)]
pub(crate) struct Http {
    #[command(flatten)]
    method: Method,
    /// The size of a file in bytes, and on how many connections it is asked for
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
    pub(crate) picture: Picture,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    size: usize,
    clients: usize,
}

impl Http {
    /// Sizes of files, and on how many connections each is asked for.
    pub(crate) fn of(method: Method, cases: &[(usize, usize)]) -> Self {
        let case = |&(size, clients): &(usize, usize)| Case { size, clients };
        Self {
            method,
            cases: cases.iter().map(case).collect(),
            contenders: HTTP.to_vec(),
            picture: Picture { svg: None },
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
            .context("a size and connections are written as 1024:50")?;
        let (size, clients) = (size.parse()?, clients.parse()?);
        ensure!(clients > 0, "there is at least one connection");
        Ok(Self { size, clients })
    }
}

impl Question for Http {
    fn subject(&self) -> Subject {
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
        Subject {
            name: "http".into(),
            title: "Files over HTTP/1.1".into(),
            unit: "microseconds of the server's CPU time per request, and requests per second"
                .into(),
            method: format!(
                "Each connection is kept, and asks for the same file again when it has all of it. \
                 No server writes an access log. {}",
                self.method.describe()
            ),
            bases: vec![Contender::Green, Contender::Nginx],
            asides: vec![
                LOAD_SHARE,
                Aside {
                    name: "the server's share of its core",
                    fold: median,
                    show: |share| format!("{:.0} %", 100.0 * share),
                },
                Aside {
                    name: "MiB of files per second",
                    fold: median,
                    show: |rate| format!("{rate:.0} MiB/s"),
                },
            ],
            parts: self.cases.iter().map(part).collect(),
        }
    }

    fn wire(&self) -> Wire {
        Wire::Http
    }

    fn contenders(&self) -> &[Contender] {
        &self.contenders
    }

    fn rounds(&self) -> usize {
        self.method.rounds
    }

    fn duration(&self, contender: Contender, part: usize) -> Duration {
        let clients = self.cases[part].clients;
        self.method.time() + self.method.warm_up() + overhead(contender, clients)
    }

    fn measure(&self, contender: Contender, part: usize, cores: Cores) -> anyhow::Result<Sample> {
        let Case { size, clients } = self.cases[part];
        let setup = Setup {
            wire: Wire::Http,
            kind: Kind::Http,
            clients,
            size,
            serve: Vec::new(),
            load: vec![format!("--warm-up={}", self.method.warm_up)],
        };
        let run = Bout::start(contender, cores, setup)?.run(Order::of(self.method.time()))?;
        let answered = f64::from(run.outcome.answered);
        let rate = answered / run.elapsed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "exact up to eight million GiB")]
        let mebibytes = size as f64 / f64::from(1 << 20);
        Ok(Sample {
            values: vec![run.server / 1e3 / answered, rate],
            asides: vec![run.load_share, run.server_share, rate * mebibytes],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_as_they_are_written() {
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
