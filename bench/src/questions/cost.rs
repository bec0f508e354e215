//! The CPU time that a server needs for one answer, when the load sends as soon as it has the last
//! one.

use clap::Args;

use super::bout::{Bout, Setup, overhead};
use super::field::{CHURN, DATAGRAMS, EVENT_DRIVEN, STREAMS};
use super::{Method, Picture, Question};
use crate::contenders::{Contender, Wire};
use crate::load::{Kind, Order};
use crate::machine::Cores;
use crate::report::{Aside, Column, Part, Sample, Subject, highest, median};

#[derive(Debug, Args)]
pub(crate) struct EchoOptions {
    #[command(flatten)]
    method: Method,
    /// The size of a message in bytes
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Over Unix stream sockets
    #[arg(long)]
    unix: bool,
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50, 1000])]
    connections: Vec<usize>,
    /// Let the load look for answers all the time: then no server pays for waking it up, which
    /// costs more, and more often, the slower the server is
    #[arg(long)]
    spin: bool,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = STREAMS.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) picture: Picture,
}

#[derive(Debug, Args)]
pub(crate) struct ChurnOptions {
    #[command(flatten)]
    method: Method,
    /// How many connections there are at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50])]
    clients: Vec<usize>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = CHURN.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) picture: Picture,
}

#[derive(Debug, Args)]
pub(crate) struct UdpOptions {
    #[command(flatten)]
    method: Method,
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16])]
    clients: Vec<usize>,
    /// How many datagrams of each client are under way at once; a receive buffer of the default
    /// size holds about 190, and what is more than that is lost when the server is not quick
    #[arg(long, default_value_t = 3)]
    window: usize,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = DATAGRAMS.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) picture: Picture,
}

pub(crate) struct Cost {
    name: String,
    title: String,
    /// How the load behaves.
    load: String,
    /// What is counted.
    request: &'static str,
    wire: Wire,
    kind: Kind,
    method: Method,
    size: usize,
    window: usize,
    spin: bool,
    clients: Vec<usize>,
    contenders: Vec<Contender>,
}

impl Cost {
    pub(crate) fn echo(method: Method, wire: Wire, size: usize, clients: &[usize]) -> Self {
        let (place, over) = match wire {
            Wire::Unix => ("unix", "a Unix stream socket"),
            _ => ("tcp", "TCP"),
        };
        let (short, long) = match size {
            _ if size.is_multiple_of(1024) => {
                (format!("{}k", size / 1024), format!("{} KiB", size / 1024))
            }
            _ => (size.to_string(), format!("{size} bytes")),
        };
        Self {
            name: format!("echo-{place}-{short}"),
            title: format!("Echo of {long} over {over}"),
            load: "Each connection sends when its last answer has come.".into(),
            request: "echo",
            wire,
            kind: Kind::Echo,
            method,
            size,
            window: 1,
            spin: false,
            clients: clients.to_vec(),
            contenders: STREAMS.to_vec(),
        }
    }

    /// The same with a load that looks for answers all the time, for those who have one thread or
    /// few.
    pub(crate) fn spinning(mut self) -> Self {
        self.name.push_str("-awake");
        self.title.push_str(", with a load that never sleeps");
        self.load
            .push_str(" It looks for answers all the time, so that nobody pays for waking it up.");
        self.spin = true;
        self.contenders = EVENT_DRIVEN.to_vec();
        self
    }

    pub(crate) fn churn(method: Method, clients: &[usize]) -> Self {
        Self {
            name: "churn".into(),
            title: "Connections over TCP: connect, one echo of 64 bytes, close".into(),
            load: "The client ends its output when it has the answer, and waits for the server to \
                   close. TIME_WAIT stays with the client, on 250 source addresses in turn."
                .into(),
            request: "connection",
            wire: Wire::Tcp,
            kind: Kind::Churn,
            method,
            size: 64,
            window: 1,
            spin: false,
            clients: clients.to_vec(),
            contenders: CHURN.to_vec(),
        }
    }

    pub(crate) fn udp(method: Method, window: usize, clients: &[usize]) -> Self {
        Self {
            name: "udp".into(),
            title: "Echo of 64 bytes over UDP".into(),
            load: format!(
                "Each client has a socket of its own and {window} datagrams under way. One that \
                 does not come back in a second is lost."
            ),
            request: "datagram",
            wire: Wire::Udp,
            kind: Kind::Udp,
            method,
            size: 64,
            window,
            spin: false,
            clients: clients.to_vec(),
            contenders: DATAGRAMS.to_vec(),
        }
    }
}

impl From<&EchoOptions> for Cost {
    fn from(options: &EchoOptions) -> Self {
        let wire = if options.unix { Wire::Unix } else { Wire::Tcp };
        let mut own = Self::echo(options.method, wire, options.size, &options.connections);
        if options.spin {
            own = own.spinning();
        }
        own.contenders.clone_from(&options.contenders);
        own
    }
}

impl From<&ChurnOptions> for Cost {
    fn from(options: &ChurnOptions) -> Self {
        let mut own = Self::churn(options.method, &options.clients);
        own.contenders.clone_from(&options.contenders);
        own
    }
}

impl From<&UdpOptions> for Cost {
    fn from(options: &UdpOptions) -> Self {
        let mut own = Self::udp(options.method, options.window, &options.clients);
        own.contenders.clone_from(&options.contenders);
        own
    }
}

impl Question for Cost {
    fn subject(&self) -> Subject {
        let mut asides = vec![
            LOAD_SHARE,
            Aside {
                name: "answers per second",
                fold: median,
                show: |rate| format!("{rate:.0}/s"),
            },
            Aside {
                name: "how often the load slept, per 1,000 answers",
                fold: median,
                show: |sleeps| format!("{:.1}", 1000.0 * sleeps),
            },
        ];
        if self.wire == Wire::Udp {
            asides.push(Aside {
                name: "lost in the worst round",
                fold: highest,
                show: |share| format!("{:.2} % lost", 100.0 * share),
            });
        }
        let part = |clients: &usize| Part {
            name: format!("C = {clients}"),
            columns: vec![Column {
                name: format!("C = {clients}"),
                point: None,
            }],
        };
        Subject {
            name: self.name.clone(),
            title: self.title.clone(),
            unit: format!("microseconds of the server's CPU time per {}", self.request),
            method: format!("{} {}", self.load, self.method.describe()),
            bases: vec![Contender::Epoll, Contender::Green],
            asides,
            parts: self.clients.iter().map(part).collect(),
        }
    }

    fn wire(&self) -> Wire {
        self.wire
    }

    fn contenders(&self) -> &[Contender] {
        &self.contenders
    }

    fn rounds(&self) -> usize {
        self.method.rounds
    }

    fn admits(&self, contender: Contender, part: usize) -> bool {
        self.kind != Kind::Echo || self.clients[part] <= contender.capacity()
    }

    fn duration(&self, contender: Contender, part: usize) -> std::time::Duration {
        let clients = match self.kind {
            Kind::Echo => self.clients[part],
            _ => 0,
        };
        self.method.time() + self.method.warm_up() + overhead(contender, clients)
    }

    fn measure(&self, contender: Contender, part: usize, cores: Cores) -> anyhow::Result<Sample> {
        let mut load = vec![
            format!("--window={}", self.window),
            format!("--warm-up={}", self.method.warm_up),
        ];
        if self.spin {
            load.push("--spin".into());
        }
        let setup = Setup {
            wire: self.wire,
            kind: self.kind,
            clients: self.clients[part],
            size: self.size,
            serve: Vec::new(),
            load,
        };
        let run = Bout::start(contender, cores, setup)?.run(Order::of(self.method.time()))?;
        let (answered, lost) = (f64::from(run.outcome.answered), f64::from(run.outcome.lost));
        Ok(Sample {
            values: vec![run.server / 1e3 / answered],
            asides: vec![
                run.load_share,
                answered / run.elapsed.as_secs_f64(),
                run.sleeps / answered,
                lost / (answered + lost),
            ],
        })
    }
}

/// When this is near 100 %, the load is the limit, and not the server.
pub(super) const LOAD_SHARE: Aside = Aside {
    name: "the load's share of its core",
    fold: median,
    show: |share| format!("{:.0} %", 100.0 * share),
};
