//! The servers: each echoes what it reads, with a buffer of 1 KiB for each connection.

mod epoll;
mod tcp;
mod udp;

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::{Args, ValueEnum};
use socketserver::metrics::Metrics;
use socketserver::{Concurrency, Green, Pooled, RequestHandler, Server, Threading, Transport};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(value_enum)]
    contender: Contender,
    /// Over UDP
    #[arg(long)]
    udp: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Contender {
    /// A bare loop around epoll: what all event-driven servers are built on
    Epoll,
    /// The green model
    Green,
    /// The green model, with connections kept alive between messages
    GreenKeepAlive,
    /// The green model, with an observer of its events, and metrics
    GreenWatched,
    /// Its engine alone
    Greenroom,
    /// The threading model
    Threading,
    /// The threading model, with an observer of its events, and metrics
    ThreadingWatched,
    /// The pooled model
    Pooled,
    /// The pooled model, with connections kept alive between messages
    PooledKeepAlive,
    /// One request at a time
    Sequential,
    /// tokio on one thread
    TokioCurrent,
    /// tokio on two
    TokioMulti,
    May,
    /// A bare thread for each connection
    StdThread,
}

/// Whose a contender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kin {
    Floor,
    Ours,
    Others,
}

impl Kin {
    pub(crate) const ALL: [Self; 3] = [Self::Floor, Self::Ours, Self::Others];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "a bare loop",
            Self::Ours => "this project",
            Self::Others => "others",
        }
    }
}

impl Contender {
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().into())
    }

    pub(crate) fn kin(self) -> Kin {
        match self {
            Self::Epoll => Kin::Floor,
            Self::Green
            | Self::GreenKeepAlive
            | Self::GreenWatched
            | Self::Greenroom
            | Self::Threading
            | Self::ThreadingWatched
            | Self::Pooled
            | Self::PooledKeepAlive
            | Self::Sequential => Kin::Ours,
            Self::TokioCurrent | Self::TokioMulti | Self::May | Self::StdThread => Kin::Others,
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

pub(crate) fn serve(options: &Options) -> anyhow::Result<()> {
    if options.udp {
        udp::serve(options.contender)
    } else {
        tcp::serve(options.contender)
    }
}

/// Tells whoever measures where to find it.
fn announce(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{address}")?;
    out.flush()
}

/// Serves with the timeouts that a server has by default: the others have none.
fn socketserver<T, C, F, H>(model: C, socket: impl Into<OwnedFd>, factory: F) -> anyhow::Result<()>
where
    T: Transport,
    C: Concurrency,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<T::Request>,
{
    let builder = Server::<T, C, ()>::builder().concurrency(model);
    let mut server = builder.adopt(socket, factory)?;
    server
        .serve_forever()
        .map_err(|e| anyhow::Error::from_boxed(e.into()))
}

/// The same with somebody who hears of every event and does next to nothing about it, and with
/// durations kept for metrics: what that costs is the difference.
fn watched<T, C, F, H>(model: C, socket: impl Into<OwnedFd>, factory: F) -> anyhow::Result<()>
where
    T: Transport,
    C: Concurrency,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<T::Request>,
{
    let heard = AtomicU64::new(0);
    let builder = Server::<T, C, ()>::builder()
        .concurrency(model)
        .on_event(move |_| {
            heard.fetch_add(1, Ordering::Relaxed);
        });
    let mut server = builder.adopt(socket, factory)?;
    Metrics::new().add("watched", &server.controller());
    server
        .serve_forever()
        .map_err(|e| anyhow::Error::from_boxed(e.into()))
}

fn green() -> Green {
    Green::new().workers(1).max_requests(20_000)
}

fn threading() -> Threading {
    Threading::new().max_threads(20_000)
}

/// With as many threads and as long a queue as it has by default.
fn pooled() -> Pooled {
    Pooled::new().max_idle(20_000)
}
