//! `load`: puts load on a server, and measures how it bears it.
//!
//! # How it measures
//!
//! A thread has many connections, and one epoll set for them all (`worker.rs`): a request is a
//! `send(2)`, a `recv(2)` and a share of an `epoll_wait(2)`, and nothing is between them that could be
//! taken for the server's. The coroutines of `greenroom` would read more easily and cost a switch each
//! way; above all, this tool is used to judge servers that run on them, and a flaw that both have
//! would be seen by neither. Threads for each connection would have the scheduler choose who is timed
//! when. So 10,000 connections cost what is ready of them, and one thread is the default, as it keeps
//! most servers busy that share the machine with it; `--threads` makes it more.
//!
//! Two ways to ask:
//!
//! * in a *closed loop* each connection sends its next request when it has the answer to the last one.
//!   That finds out how much a server can do. Its latencies flatter a server that stalls: while it
//!   does, nobody asks, and what they would have waited is missing ("coordinated omission");
//! * in an *open loop* (`--rate`) requests are due at times that the server does not influence, and a
//!   latency is measured from when its request was due. One that waits for a free connection, or for
//!   this tool, waits at the server's expense. That finds out what users would see.
//!
//! What this tool itself needs is measured and told (`own.rs`), and a warning says when it, and not the
//! server, was the limit.
//!
//! # Where things are
//!
//! `target.rs` and `link.rs` open and move bytes, `answer.rs` knows when an answer is whole, `supply.rs`
//! when a request is due, `exchange.rs` what becomes of one; `crew.rs` has the threads, and `report/`
//! tells it all.

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

/// Put load on a server, and measure how it bears it
///
/// Without --rate, each connection sends its next request when it has the answer to the last one:
/// that shows how much the server can do. With --rate, requests are sent at times that the server
/// does not influence, and latencies count from when a request should have been sent: that shows what
/// users see, also while the server stalls.
///
/// Ctrl-C ends it early and reports what there is. The exit status is 0 if there were answers and
/// nothing failed; 1 if anything failed, or nothing was answered; 2 for wrong usage.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:///path, unix://@abstract,
    /// unixgram:///path or unixgram://@abstract
    #[arg(value_name = "ENDPOINT")]
    endpoint: Endpoint,

    /// How many connections there are, or sockets that send datagrams; each has one request under way
    #[arg(
        long,
        short = 'C',
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    connections: u32,

    /// How many requests are sent per second by all connections together [default: as many as are
    /// answered]
    #[arg(long, short = 'r', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// How long requests are sent [default: 10s, or until --requests are sent]
    #[arg(long, short = 'd', value_name = "DURATION", value_parser = time)]
    duration: Option<Duration>,

    /// How many requests are sent [default: any number]
    #[arg(long, short = 'n', value_name = "N")]
    requests: Option<NonZeroU64>,

    /// How long requests are sent before, which are not measured
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = time_or_none)]
    warm_up: Duration,

    /// What is sent, as it is, or @FILE for what is in a file
    #[arg(long, short = 'm', value_name = "TEXT|@FILE", conflicts_with = "size")]
    message: Option<String>,

    /// How long a message is that is made up
    #[arg(long, short = 's', value_name = "SIZE", default_value = "64B")]
    size: Size,

    /// How an answer is recognised: `same` for as many bytes as were sent, `lines` for one line (and
    /// the message is one, too), `none` if there is none, or a number of bytes. The answer to a
    /// datagram is a datagram
    ///
    /// With `none`, the latency is the time until the system has taken all of the message. At the
    /// end a connection is closed by half, and the server has --timeout to close it, too.
    #[arg(long, value_name = "HOW", default_value = "same")]
    answer: ResponseMatcher,

    /// Compare each answer with what it should be
    #[arg(long, value_name = "WITH", value_enum)]
    verify: Option<Verify>,

    /// Make a new connection for each request; the time it takes is part of the latency
    #[arg(long)]
    churn: bool,

    /// How long a request may take, and a connection to be opened
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = time)]
    timeout: Duration,

    /// How many threads share the connections
    #[arg(
        long,
        short = 't',
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    threads: u32,

    /// Send the load to another machine than this one; only do that to what is yours
    #[arg(long)]
    allow_remote: bool,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Write all percentiles of the latency to a file, in the form of HdrHistogram (.hgrm)
    #[arg(long, value_name = "FILE")]
    histogram: Option<PathBuf>,

    #[command(flatten)]
    tls: ClientTls,
}

/// If neither --duration nor --requests is given.
const DURATION: Duration = Duration::from_secs(10);

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let endpoint = &options.endpoint;
    options.check()?;
    let target = Target::find(endpoint, &options.tls, options.allow_remote)?;
    let plan = options.plan(target)?;
    // What cannot be written is told before the work, and not after it.
    let histogram = options.histogram.as_deref().map(create).transpose()?;
    fd_limit::make_room_for(options.connections, options.threads)?;
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
    /// Refuses what does not go together.
    fn check(&self) -> Result<(), UsageError> {
        if self.verify.is_some() && self.answer == ResponseMatcher::None {
            return Err(UsageError(
                "--verify compares answers, and --answer none has none".into(),
            ));
        }
        if self.threads > self.connections {
            return Err(UsageError(format!(
                "--threads {} share {} connections: there is not one for each",
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
                // One that is made up keeps its size.
                (None, Some(last)) => *last = b'\n',
                _ => message.push(b'\n'),
            }
        }
        if message.is_empty() {
            return Err(UsageError("an empty message cannot be sent".into()).into());
        }
        Ok(message)
    }

    /// How long requests are sent and measured.
    fn time(&self) -> Option<Duration> {
        self.duration
            .or_else(|| self.requests.is_none().then_some(DURATION))
    }
}

/// All connections send the same one, so that this much is there once.
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

/// More would not fit into the clock.
const LONGEST_TIME: Duration = Duration::from_secs(366 * 24 * 3600);

fn time_or_none(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time > LONGEST_TIME {
        return Err("it is more than a year".into());
    }
    Ok(time)
}

fn time(text: &str) -> Result<Duration, String> {
    match time_or_none(text)? {
        Duration::ZERO => Err("it has to be longer than that".into()),
        time => Ok(time),
    }
}
