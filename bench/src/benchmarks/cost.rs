//! CPU time of the server per request, under a closed-loop load: each client sends again as soon as
//! it has its answer.

use clap::Args;

use super::lineup::{CHURN, DATAGRAMS, EVENT_DRIVEN, STREAMS};
use super::run::{Run, Setup, startup_time};
use super::{Benchmark, ChartOptions, Sampling};
use crate::contenders::{Contender, Transport};
use crate::environment::Cores;
use crate::load::{Kind, RunSpec};
use crate::report::{Column, Description, Note, Part, Sample, highest, median};

#[derive(Debug, Args)]
pub(crate) struct EchoOptions {
    #[command(flatten)]
    sampling: Sampling,
    /// Size of a message in bytes
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Use Unix stream sockets
    #[arg(long)]
    unix: bool,
    /// Numbers of connections, one case each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50, 1000])]
    connections: Vec<usize>,
    /// Poll for answers without sleeping, so that no server pays for waking the load; a slow
    /// server lets the load sleep more often, and so pays more often
    #[arg(long)]
    spin: bool,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = STREAMS.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) chart: ChartOptions,
}

#[derive(Debug, Args)]
pub(crate) struct ChurnOptions {
    #[command(flatten)]
    sampling: Sampling,
    /// Numbers of concurrent connections, one case each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50])]
    clients: Vec<usize>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = CHURN.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) chart: ChartOptions,
}

#[derive(Debug, Args)]
pub(crate) struct UdpOptions {
    #[command(flatten)]
    sampling: Sampling,
    /// Numbers of clients, one case each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16])]
    clients: Vec<usize>,
    /// Datagrams in flight per client; a receive buffer of the default size holds about 190, and
    /// the kernel drops what does not fit
    #[arg(long, default_value_t = 3)]
    window: usize,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = DATAGRAMS.iter().copied())]
    contenders: Vec<Contender>,
    #[command(flatten)]
    pub(crate) chart: ChartOptions,
}

pub(crate) struct Cost {
    name: String,
    title: String,
    /// Behaviour of the load, as a sentence.
    load_behaviour: String,
    /// Name of what is counted.
    request: &'static str,
    transport: Transport,
    kind: Kind,
    sampling: Sampling,
    size: usize,
    window: usize,
    spin: bool,
    clients: Vec<usize>,
    contenders: Vec<Contender>,
}

impl Cost {
    pub(crate) fn echo(
        sampling: Sampling,
        transport: Transport,
        size: usize,
        clients: &[usize],
    ) -> Self {
        let (suffix, socket) = match transport {
            Transport::Unix => ("unix", "a Unix stream socket"),
            _ => ("tcp", "TCP"),
        };
        let (short, long) = match size {
            _ if size.is_multiple_of(1024) => {
                (format!("{}k", size / 1024), format!("{} KiB", size / 1024))
            }
            _ => (size.to_string(), format!("{size} bytes")),
        };
        Self {
            name: format!("echo-{suffix}-{short}"),
            title: format!("Echo of {long} over {socket}"),
            load_behaviour:
                "Each connection sends as soon as it has the answer to its last message.".into(),
            request: "echo",
            transport,
            kind: Kind::Echo,
            sampling,
            size,
            window: 1,
            spin: false,
            clients: clients.to_vec(),
            contenders: STREAMS.to_vec(),
        }
    }

    /// Uses a load that polls without sleeping, and only contenders with one or few threads.
    pub(crate) fn with_spinning_load(mut self) -> Self {
        self.name.push_str("-spin");
        self.title.push_str(", with a load that never sleeps");
        self.load_behaviour
            .push_str(" The load polls for answers, so that no server pays for waking the load.");
        self.spin = true;
        self.contenders = EVENT_DRIVEN.to_vec();
        self
    }

    pub(crate) fn churn(sampling: Sampling, clients: &[usize]) -> Self {
        Self {
            name: "churn".into(),
            title: "Connections over TCP: connect, one echo of 64 bytes, close".into(),
            load_behaviour: "The client shuts down its output when it has the answer, and waits \
                             for the server to close. TIME_WAIT stays with the client, on 250 \
                             source addresses in turn."
                .into(),
            request: "connection",
            transport: Transport::Tcp,
            kind: Kind::Churn,
            sampling,
            size: 64,
            window: 1,
            spin: false,
            clients: clients.to_vec(),
            contenders: CHURN.to_vec(),
        }
    }

    pub(crate) fn udp(sampling: Sampling, window: usize, clients: &[usize]) -> Self {
        Self {
            name: "udp".into(),
            title: "Echo of 64 bytes over UDP".into(),
            load_behaviour: format!(
                "Each client has its own socket and {window} datagrams in flight. A datagram \
                 without an echo within a second counts as lost."
            ),
            request: "datagram",
            transport: Transport::Udp,
            kind: Kind::Udp,
            sampling,
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
        let transport = if options.unix {
            Transport::Unix
        } else {
            Transport::Tcp
        };
        let mut own = Self::echo(
            options.sampling,
            transport,
            options.size,
            &options.connections,
        );
        if options.spin {
            own = own.with_spinning_load();
        }
        own.contenders.clone_from(&options.contenders);
        own
    }
}

impl From<&ChurnOptions> for Cost {
    fn from(options: &ChurnOptions) -> Self {
        let mut own = Self::churn(options.sampling, &options.clients);
        own.contenders.clone_from(&options.contenders);
        own
    }
}

impl From<&UdpOptions> for Cost {
    fn from(options: &UdpOptions) -> Self {
        let mut own = Self::udp(options.sampling, options.window, &options.clients);
        own.contenders.clone_from(&options.contenders);
        own
    }
}

impl Benchmark for Cost {
    fn describe(&self) -> Description {
        let mut notes = vec![
            LOAD_SHARE,
            Note {
                name: "answers per second",
                aggregate: median,
                format: |rate| format!("{rate:.0}/s"),
            },
            Note {
                name: "sleeps of the load per 1,000 answers",
                aggregate: median,
                format: |sleeps| format!("{:.1}", 1000.0 * sleeps),
            },
        ];
        if self.transport == Transport::Udp {
            notes.push(Note {
                name: "datagrams lost in the worst round",
                aggregate: highest,
                format: |share| format!("{:.2} % lost", 100.0 * share),
            });
        }
        let part = |clients: &usize| Part {
            name: format!("C = {clients}"),
            columns: vec![Column {
                name: format!("C = {clients}"),
                point: None,
            }],
        };
        Description {
            name: self.name.clone(),
            title: self.title.clone(),
            unit: format!("microseconds of the server's CPU time per {}", self.request),
            method: format!("{} {}", self.load_behaviour, self.sampling.summary()),
            baselines: vec![Contender::Epoll, Contender::Green],
            notes,
            parts: self.clients.iter().map(part).collect(),
        }
    }

    fn transport(&self) -> Transport {
        self.transport
    }

    fn contenders(&self) -> &[Contender] {
        &self.contenders
    }

    fn rounds(&self) -> usize {
        self.sampling.rounds
    }

    fn includes(&self, contender: Contender, part: usize) -> bool {
        self.kind != Kind::Echo || self.clients[part] <= contender.max_connections()
    }

    fn duration(&self, contender: Contender, part: usize) -> std::time::Duration {
        let clients = match self.kind {
            Kind::Echo => self.clients[part],
            _ => 0,
        };
        self.sampling.time() + self.sampling.warm_up() + startup_time(contender, clients)
    }

    fn measure(&self, contender: Contender, part: usize, cores: Cores) -> anyhow::Result<Sample> {
        let mut load_args = vec![
            format!("--window={}", self.window),
            format!("--warm-up={}", self.sampling.warm_up),
        ];
        if self.spin {
            load_args.push("--spin".into());
        }
        let setup = Setup {
            transport: self.transport,
            kind: self.kind,
            clients: self.clients[part],
            size: self.size,
            server_args: Vec::new(),
            load_args,
        };
        let run =
            Run::start(contender, cores, setup)?.measure(RunSpec::of(self.sampling.time()))?;
        let (answered, lost) = (f64::from(run.outcome.answered), f64::from(run.outcome.lost));
        Ok(Sample {
            values: vec![run.server / 1e3 / answered],
            notes: vec![
                run.load_share,
                answered / run.elapsed.as_secs_f64(),
                run.sleeps / answered,
                lost / (answered + lost),
            ],
        })
    }
}

/// The load's share of its core. Near 100 %, the load limits the throughput, not the server.
pub(super) const LOAD_SHARE: Note = Note {
    name: "load's share of its core",
    aggregate: median,
    format: |share| format!("{:.0} %", 100.0 * share),
};
