//! `load`: measures throughput and latency of a server under load.
//!
//! # Method
//!
//! A thread serves many connections with one epoll set (`worker.rs`). A request costs one
//! `send(2)`, one `recv(2)` and a share of an `epoll_wait(2)`, with little other work that could be
//! mistaken for the server's. Coroutines of `greenroom` would be easier to read, but cost a switch
//! each way. Moreover, this tool measures servers that run on `greenroom`, and a flaw in both would
//! remain invisible. With one thread for each connection, the scheduler would decide which latency
//! is measured when. With epoll, 10,000 connections cost only the work for ready ones. One thread
//! is the default because it saturates most servers on the same machine; `--threads` sets more.
//!
//! There are two modes:
//!
//! * in a *closed loop*, each connection sends its next request when it has the answer to the last
//!   one. This mode measures the maximum throughput. Its latencies are too low for a server that
//!   stalls: during the stall no requests are sent, and their waiting time is missing ("coordinated
//!   omission");
//! * in an *open loop* (`--rate`), requests are due at times that the server does not influence, and
//!   a latency counts from the time at which its request was due. Waiting for a free connection, or
//!   for this tool, counts as well. This mode measures what users would see.
//!
//! The tool measures and reports its own CPU usage (`cpu_usage.rs`). A warning appears if the tool,
//! and not the server, was the limit.
//!
//! # Files
//!
//! `target.rs` and `client_socket.rs` open sockets and move bytes. `response.rs` recognizes a
//! complete answer. `schedule.rs` decides when a request is due. `connection.rs` holds the state of
//! a connection. `threads.rs` runs the threads, and `report/` prints the results.

mod client_socket;
mod connection;
mod cpu_usage;
mod failure;
mod fd_limit;
mod progress;
mod report;
mod response;
mod schedule;
mod stats;
mod target;
mod threads;
mod worker;

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::byte_size::Size;
use crate::cli::UsageError;
use crate::endpoint::Endpoint;
use crate::tls::ClientTls;

use report::Report;
use response::{MatchRule, ResponseMatcher, Verify};
use target::Target;
use worker::{Expected, Plan, Progress};

/// Put load on a server and measure its throughput and latency
///
/// Without --rate, each connection sends its next request when it has the answer to the last one.
/// This measures the maximum throughput. With --rate, requests are due at times that the server
/// does not influence, and latencies count from those times. This measures what users see, even
/// while the server stalls.
///
/// Ctrl-C ends the load early and reports the results so far. The exit status is 0 if there were
/// answers and no failures, 1 if a request failed or there were no answers, and 2 for wrong usage.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Address of the server: tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:///path,
    /// unix://@abstract, unixgram:///path or unixgram://@abstract
    #[arg(value_name = "ENDPOINT")]
    endpoint: Endpoint,

    /// Number of connections, or of sockets that send datagrams; each has one request at a time
    #[arg(
        long,
        short = 'C',
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    connections: u32,

    /// Number of requests per second over all connections [default: as many as the server answers]
    #[arg(long, short = 'r', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// Duration of the measurement [default: 10s, or until --requests are sent]
    #[arg(long, short = 'd', value_name = "DURATION", value_parser = time)]
    duration: Option<Duration>,

    /// Number of requests to send [default: unlimited]
    #[arg(long, short = 'n', value_name = "N")]
    requests: Option<NonZeroU64>,

    /// Duration of a warm-up before the measurement
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = time_or_none)]
    warm_up: Duration,

    /// Message to send, or @FILE for the content of a file
    #[arg(long, short = 'm', value_name = "TEXT|@FILE", conflicts_with = "size")]
    message: Option<String>,

    /// Size of the generated message if --message is not given
    #[arg(long, short = 's', value_name = "SIZE", default_value = "64B")]
    size: Size,

    /// Recognition of an answer: `same` for as many bytes as were sent, `lines` for one line (the
    /// message is then one line, too), `none` for no answer, or a number of bytes. The answer to a
    /// datagram is always one datagram
    ///
    /// With `none`, the latency is the time until the kernel has taken the whole message. At the
    /// end, the client half-closes each connection and the server has --timeout to close it.
    #[arg(long, value_name = "HOW", default_value = "same")]
    answer: ResponseMatcher,

    /// Compare each answer with the expected one
    #[arg(long, value_name = "WITH", value_enum)]
    verify: Option<Verify>,

    /// Open a new connection for each request; the latency includes the time to connect
    #[arg(long)]
    churn: bool,

    /// Maximum time for a request, and for opening a connection
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = time)]
    timeout: Duration,

    /// Number of threads that share the connections
    #[arg(
        long,
        short = 't',
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    threads: u32,

    /// Allow load on another machine than this one; use it only for machines that you own
    #[arg(long)]
    allow_remote: bool,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Write all percentiles of the latency to a file in the HdrHistogram format (.hgrm)
    #[arg(long, value_name = "FILE")]
    histogram: Option<PathBuf>,

    #[command(flatten)]
    tls: ClientTls,
}

/// The default if neither --duration nor --requests is given.
const DURATION: Duration = Duration::from_secs(10);

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let endpoint = &options.endpoint;
    options.check()?;
    let target = Target::find(endpoint, &options.tls, options.allow_remote)?;
    let plan = options.plan(target)?;
    // A file that cannot be created is reported before the load begins.
    let histogram = options.histogram.as_deref().map(create).transpose()?;
    fd_limit::raise_for(options.connections, options.threads)?;
    progress::catch_signals(&plan.progress.stop)?;
    let (tally, was_interrupted) = threads::work(options, &plan)?;
    let report = Report::new(options, &plan, &tally, was_interrupted);
    if let Some((path, mut file)) = options.histogram.as_deref().zip(histogram) {
        report::percentiles(&mut file, &tally.latency)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = if options.json {
        report.json()?
    } else {
        report.text()
    };
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")?;
    Ok(if tally.answered() > 0 && tally.failed() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Options {
    /// Returns an error if options contradict each other.
    fn check(&self) -> Result<(), UsageError> {
        if self.verify.is_some() && self.answer == ResponseMatcher::None {
            return Err(UsageError(
                "--verify compares answers, and --answer none has none".into(),
            ));
        }
        if self.threads > self.connections {
            return Err(UsageError(format!(
                "--threads {} share {} connections: each thread needs at least one connection",
                self.threads, self.connections
            )));
        }
        Ok(())
    }

    fn plan(&self, target: Target) -> anyhow::Result<Plan> {
        let message = self.message()?;
        if let Some(longest) = target.longest().filter(|&longest| message.len() > longest) {
            return Err(UsageError(format!(
                "a message of {} bytes does not fit into a datagram, which has at most {longest}",
                message.len()
            ))
            .into());
        }
        let expected = match self.verify {
            None => Expected::Anything,
            Some(Verify::Message) => Expected::This(message.clone()),
            Some(Verify::Upper) => Expected::This(message.to_ascii_uppercase()),
            Some(Verify::First) => Expected::First(OnceLock::new()),
        };
        Ok(Plan {
            rule: MatchRule {
                answer: self.answer,
                sent: message.len(),
                is_datagram: target.is_datagram(),
                keeps: self.verify.is_some(),
            },
            target,
            message,
            expected,
            churn: self.churn,
            timeout: self.timeout,
            progress: Progress::default(),
        })
    }

    fn message(&self) -> anyhow::Result<Vec<u8>> {
        let mut message = match self.message.as_deref() {
            None => {
                let size = usize::try_from(self.size.0).unwrap_or(usize::MAX);
                if size > LONGEST_MESSAGE {
                    return Err(too_long().into());
                }
                (b'a'..=b'z').cycle().take(size).collect()
            }
            Some(text) => match text.strip_prefix('@') {
                Some(path) => read(Path::new(path))?,
                None => text.as_bytes().to_vec(),
            },
        };
        if self.answer == ResponseMatcher::Line && !message.ends_with(b"\n") {
            match (&self.message, message.last_mut()) {
                // A generated message keeps its size.
                (None, Some(last)) => *last = b'\n',
                _ => message.push(b'\n'),
            }
        }
        if message.is_empty() {
            return Err(UsageError("an empty message cannot be sent".into()).into());
        }
        Ok(message)
    }

    /// Returns the duration of the measured window.
    fn time(&self) -> Option<Duration> {
        self.duration
            .or_else(|| self.requests.is_none().then_some(DURATION))
    }
}

/// The maximum size of a message. All connections share one copy.
const LONGEST_MESSAGE: usize = 1 << 30;

fn too_long() -> UsageError {
    UsageError("a message has at most 1GiB".into())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read;
    let mut message = Vec::new();
    File::open(path)
        .and_then(|file| {
            let most = LONGEST_MESSAGE as u64 + 1;
            file.take(most).read_to_end(&mut message)
        })
        .with_context(|| format!("cannot read the message in {}", path.display()))?;
    if message.len() > LONGEST_MESSAGE {
        return Err(too_long().into());
    }
    Ok(message)
}

fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

/// The maximum duration; a longer one may overflow the clock.
const LONGEST_TIME: Duration = Duration::from_secs(366 * 24 * 3600);

fn time_or_none(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time > LONGEST_TIME {
        return Err("the duration exceeds a year".into());
    }
    Ok(time)
}

fn time(text: &str) -> Result<Duration, String> {
    match time_or_none(text)? {
        Duration::ZERO => Err("the duration must be longer than zero".into()),
        time => Ok(time),
    }
}
