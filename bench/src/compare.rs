//! Who measures: starts servers and load in turn, and reads what the kernel says about them.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;

use crate::contenders::Contender;
use crate::load::{Count, Kind};
use crate::machine::{self, Cores};
use crate::process::Process;
use crate::report::{Case, Report, Row, median};

#[derive(Debug, Args)]
pub(crate) struct Method {
    /// How many rounds; the median is shown, with the lowest and the highest
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each measurement takes, in milliseconds
    #[arg(long, default_value_t = 1500)]
    time: u64,
    /// How long the load runs before each, in milliseconds
    #[arg(long, default_value_t = 300)]
    warm_up: u64,
    /// The size of a message in bytes
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Let the load look for answers all the time: then no server pays for waking it up, which
    /// costs more, and more often, the slower the server is
    #[arg(long)]
    spin: bool,
    #[command(flatten)]
    picture: Picture,
}

#[derive(Debug, Args)]
struct Picture {
    /// Draw the medians and the ranges into this file, too
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct EchoOptions {
    #[command(flatten)]
    method: Method,
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50, 1000])]
    connections: Vec<usize>,
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "epoll,green,green-keep-alive,greenroom,tokio-current,tokio-multi,may,\
                         threading,std-thread"
    )]
    contenders: Vec<Contender>,
}

#[derive(Debug, Args)]
pub(crate) struct ChurnOptions {
    #[command(flatten)]
    method: Method,
    /// How many connections there are at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50])]
    clients: Vec<usize>,
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "epoll,green,threading,pooled,tokio-current,tokio-multi,std-thread"
    )]
    contenders: Vec<Contender>,
}

#[derive(Debug, Args)]
pub(crate) struct UdpOptions {
    #[command(flatten)]
    method: Method,
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50])]
    clients: Vec<usize>,
    /// How many datagrams of each client are under way at once; a receive buffer of the default
    /// size holds about 190, and what is more than that is lost when the server is not quick
    #[arg(long, default_value_t = 3)]
    window: usize,
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "epoll,green,sequential,threading,pooled,tokio-current"
    )]
    contenders: Vec<Contender>,
}

#[derive(Debug, Args)]
pub(crate) struct IdleOptions {
    #[arg(long, default_value_t = 15_000)]
    connections: usize,
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "epoll,green,green-keep-alive,greenroom,tokio-current,may"
    )]
    contenders: Vec<Contender>,
    #[command(flatten)]
    picture: Picture,
}

pub(crate) fn echo(options: &EchoOptions) -> anyhow::Result<()> {
    let comparison = Comparison {
        kind: Kind::Echo,
        request: "echo",
        method: &options.method,
        clients: &options.connections,
        window: 1,
        contenders: &options.contenders,
    };
    let title = format!("Echo of {} bytes over TCP", options.method.size);
    comparison.publish(
        title,
        "Each connection sends when its last answer has come.",
    )
}

pub(crate) fn churn(options: &ChurnOptions) -> anyhow::Result<()> {
    let comparison = Comparison {
        kind: Kind::Churn,
        request: "connection",
        method: &options.method,
        clients: &options.clients,
        window: 1,
        contenders: &options.contenders,
    };
    let size = options.method.size;
    let title = format!("TCP connections: connect, one echo of {size} bytes, close");
    comparison.publish(
        title,
        "The client ends its output when it has the answer, and waits for the server to close. \
         TIME_WAIT stays with the client, on 250 source addresses in turn.",
    )
}

pub(crate) fn udp(options: &UdpOptions) -> anyhow::Result<()> {
    let comparison = Comparison {
        kind: Kind::Udp,
        request: "datagram",
        method: &options.method,
        clients: &options.clients,
        window: options.window,
        contenders: &options.contenders,
    };
    let title = format!("Echo of {} bytes over UDP", options.method.size);
    let window = options.window;
    comparison.publish(
        title,
        &format!(
            "Each client has a socket of its own and {window} datagrams under way. One that does \
             not come back in a second is lost."
        ),
    )
}

/// Memory is the same in each round, or nearly so: there is one.
pub(crate) fn idle(options: &IdleOptions) -> anyhow::Result<()> {
    let cores = Cores::look()?;
    let header = machine::describe(cores)?;
    let mut rows = Vec::new();
    for &contender in &options.contenders {
        let (each, answers) =
            memory(contender, options.connections, cores).with_context(|| contender.name())?;
        rows.push(Row {
            contender,
            values: vec![each],
            asides: vec![answers.to_string()],
        });
    }
    let report = Report {
        header,
        title: "Memory of connections that are silent".into(),
        unit: "KiB for each".into(),
        method: "Private memory of the server after one echo of 64 bytes on each connection; then \
                 all of them talk at once."
            .into(),
        base: None,
        asides: vec!["answers in a second"],
        cases: vec![Case {
            name: format!("{} connections", options.connections),
            rows,
        }],
    };
    report.publish(options.picture.svg.as_deref())
}

fn memory(contender: Contender, connections: usize, cores: Cores) -> anyhow::Result<(f64, u32)> {
    let mut server = Process::start(cores.server, &["serve", &contender.name()])?;
    let address = server.line()?;
    let before = server.private_memory()?;
    let count = connections.to_string();
    let args = [
        "load",
        "echo",
        &address,
        "--clients",
        &count,
        "--warm-up",
        "0",
    ];
    let mut load = Process::start(cores.load, &args)?;
    ensure!(load.line()? == "ready");
    let after = server.private_memory()?;
    let answers: Count = load.ask("1000")?.parse()?;
    #[expect(clippy::cast_precision_loss, reason = "kibibytes for a table")]
    let each = after.saturating_sub(before) as f64 / connections as f64;
    Ok((each, answers.answered))
}

/// The CPU time of servers under one kind of load.
struct Comparison<'a> {
    kind: Kind,
    /// What is counted.
    request: &'static str,
    method: &'a Method,
    clients: &'a [usize],
    window: usize,
    contenders: &'a [Contender],
}

/// What one measurement came to.
struct Sample {
    /// CPU microseconds of the server for one request.
    cost: f64,
    /// The load's share of its core.
    load_share: f64,
    /// How often the load went to sleep for want of answers, for each request.
    sleeps: f64,
    count: Count,
}

impl Comparison<'_> {
    fn publish(&self, title: String, load: &str) -> anyhow::Result<()> {
        let Method { rounds, time, .. } = self.method;
        let cores = Cores::look()?;
        let load = if self.method.spin {
            format!("{load} It never sleeps.")
        } else {
            load.to_owned()
        };
        let mut asides = vec!["load's core", "load slept, per 1,000"];
        if let Kind::Udp = self.kind {
            asides.push("lost");
        }
        let report = Report {
            header: machine::describe(cores)?,
            title,
            unit: format!("microseconds of CPU per {}", self.request),
            method: format!(
                "{load} Median (lowest to highest) of rounds: {rounds}, interleaved, of {time} ms each."
            ),
            base: Some(Contender::Epoll),
            asides,
            cases: self.cases(cores)?,
        };
        report.publish(self.method.picture.svg.as_deref())
    }

    /// One for each number of clients.
    fn cases(&self, cores: Cores) -> anyhow::Result<Vec<Case>> {
        let nothing_yet = |contender: &Contender| (*contender, Vec::new());
        let rows = || self.contenders.iter().map(nothing_yet).collect::<Vec<_>>();
        let mut cases: Vec<_> = self
            .clients
            .iter()
            .map(|clients| (*clients, rows()))
            .collect();
        for round in 1..=self.method.rounds {
            // For whoever waits.
            writeln!(io::stderr(), "round {round} of {}", self.method.rounds)?;
            for (clients, rows) in &mut cases {
                for (contender, samples) in rows {
                    let sample = self.measure(*contender, *clients, cores);
                    let place = || format!("{contender} with C = {clients}");
                    samples.push(sample.with_context(place)?);
                }
            }
        }
        let case = |(clients, rows): (usize, Vec<(Contender, Vec<Sample>)>)| Case {
            name: format!("C = {clients}"),
            rows: rows
                .iter()
                .map(|(contender, samples)| self.row(*contender, samples))
                .collect(),
        };
        Ok(cases.into_iter().map(case).collect())
    }

    fn measure(
        &self,
        contender: Contender,
        clients: usize,
        cores: Cores,
    ) -> anyhow::Result<Sample> {
        let name = contender.name();
        let mut serve = vec!["serve", &name];
        if let Kind::Udp = self.kind {
            serve.push("--udp");
        }
        let mut server = Process::start(cores.server, &serve)?;
        let address = server.line()?;
        let mut load = Process::start(cores.load, &self.load_args(&address, clients))?;
        ensure!(load.line()? == "ready");
        let before = (server.usage()?, load.usage()?, Instant::now());
        let count: Count = load.ask(&self.method.time.to_string())?.parse()?;
        let (server, load, elapsed) = (server.usage()?, load.usage()?, before.2.elapsed());
        ensure!(count.answered > 0, "no answers");
        let answered = f64::from(count.answered);
        Ok(Sample {
            cost: server.cpu_since(&before.0) / 1e3 / answered,
            load_share: load.cpu_since(&before.1) / 1e9 / elapsed.as_secs_f64(),
            sleeps: load.sleeps_since(&before.1) / answered,
            count,
        })
    }

    fn load_args(&self, address: &str, clients: usize) -> Vec<String> {
        let options = [
            ("clients", clients.to_string()),
            ("size", self.method.size.to_string()),
            ("window", self.window.to_string()),
            ("warm-up", self.method.warm_up.to_string()),
        ];
        let mut args = vec!["load".into(), self.kind.name(), address.into()];
        args.extend(options.map(|(name, value)| format!("--{name}={value}")));
        if self.method.spin {
            args.push("--spin".into());
        }
        args
    }

    fn row(&self, contender: Contender, samples: &[Sample]) -> Row {
        let middle = |of: fn(&Sample) -> f64| median(&samples.iter().map(of).collect::<Vec<_>>());
        let mut asides = vec![
            format!("{:.0} %", 100.0 * middle(|sample| sample.load_share)),
            format!("{:.1}", 1000.0 * middle(|sample| sample.sleeps)),
        ];
        if let Kind::Udp = self.kind {
            let lost: u32 = samples.iter().map(|sample| sample.count.lost).sum();
            let answered: u32 = samples.iter().map(|sample| sample.count.answered).sum();
            asides.push(format!("{lost} of {}", answered + lost));
        }
        Row {
            contender,
            values: samples.iter().map(|sample| sample.cost).collect(),
            asides,
        }
    }
}
