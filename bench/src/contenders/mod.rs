//! The servers: each echoes what it reads, with a buffer of 1 KiB (or 16) for each connection, or
//! serves the files of a directory over HTTP.

mod actix;
mod epoll;
mod http;
#[allow(
    unsafe_code,
    reason = "the kernel is told addresses; each block argues that they stay valid"
)]
mod io_uring;
mod may;
mod monoio;
mod ours;
mod python;
mod stream;
mod threads;
mod tokio;
mod udp;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::process::die_with_parent;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(value_enum)]
    contender: Contender,
    /// Over UDP
    #[arg(long, conflicts_with = "unix")]
    udp: bool,
    /// Over a Unix stream socket with this name
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Serve what is in `files` in this directory over HTTP; beside it is room for what the server
    /// writes itself
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["udp", "unix", "large", "stop"])]
    http: Option<PathBuf>,
    /// With a buffer of 16 KiB for each connection, instead of 1 KiB
    #[arg(long)]
    large: bool,
    /// Stop at SIGTERM in an orderly way, without waiting for clients
    #[arg(long)]
    stop: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Contender {
    /// A bare loop around epoll: what all event-driven servers are built on
    Epoll,
    /// A bare loop around io_uring
    IoUring,
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
    /// The forking model
    Forking,
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
    /// actix-server with one worker
    Actix,
    /// monoio on io_uring
    Monoio,
    May,
    /// A bare thread for each connection
    StdThread,
    /// Python's socketserver with a thread for each request
    PythonThreading,
    /// Python's asyncio
    PythonAsyncio,
    /// Python's gevent
    PythonGevent,
    /// nginx, with one worker process
    Nginx,
    /// hyper, on tokio on one thread
    Hyper,
}

/// Whose a contender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kin {
    Floor,
    Ours,
    Others,
}

/// What clients and servers speak over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Tcp,
    Unix,
    Udp,
    /// HTTP/1.1, over TCP.
    Http,
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
            Self::Epoll | Self::IoUring => Kin::Floor,
            Self::Green
            | Self::GreenKeepAlive
            | Self::GreenWatched
            | Self::Greenroom
            | Self::Threading
            | Self::ThreadingWatched
            | Self::Forking
            | Self::Pooled
            | Self::PooledKeepAlive
            | Self::Sequential => Kin::Ours,
            Self::TokioCurrent
            | Self::TokioMulti
            | Self::Actix
            | Self::Monoio
            | Self::May
            | Self::StdThread
            | Self::PythonThreading
            | Self::PythonAsyncio
            | Self::PythonGevent
            | Self::Nginx
            | Self::Hyper => Kin::Others,
        }
    }

    /// Whether there is such a server here.
    pub(crate) fn serves(self, wire: Wire) -> bool {
        match wire {
            Wire::Tcp | Wire::Unix => !matches!(self, Self::Nginx | Self::Hyper),
            Wire::Udp => !matches!(
                self,
                Self::IoUring
                    | Self::GreenKeepAlive
                    | Self::GreenWatched
                    | Self::Greenroom
                    | Self::ThreadingWatched
                    | Self::PooledKeepAlive
                    | Self::Actix
                    | Self::Nginx
                    | Self::Hyper
            ),
            Wire::Http => matches!(
                self,
                Self::Green | Self::Threading | Self::Pooled | Self::Nginx | Self::Hyper
            ),
        }
    }

    /// Whether it can be stopped in an orderly way that it brings along or that its documentation shows.
    pub(crate) fn stops(self) -> bool {
        match self.kin() {
            Kin::Floor => false,
            Kin::Ours => self != Self::Greenroom,
            Kin::Others => !matches!(
                self,
                Self::Monoio | Self::May | Self::StdThread | Self::Nginx | Self::Hyper
            ),
        }
    }

    /// How many connections that stay open are asked of it, at most. Where each has a thread or a
    /// process, that is what a system of ordinary size has room for.
    pub(crate) fn capacity(self) -> usize {
        match self {
            Self::Sequential => 1,
            // As many threads as it has by default.
            Self::Pooled => 32,
            Self::Forking | Self::PythonThreading => 1_000,
            Self::Threading | Self::ThreadingWatched | Self::StdThread => 5_000,
            _ => 20_000,
        }
    }

    /// Why it cannot run on this system, if so.
    pub(crate) fn missing(self, wire: Wire) -> Option<String> {
        if wire == Wire::Http {
            return http::missing(self);
        }
        match self {
            Self::IoUring | Self::Monoio => io_uring::missing(),
            Self::PythonThreading | Self::PythonAsyncio | Self::PythonGevent => {
                python::missing(self)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Unix => "Unix streams",
            Self::Udp => "UDP",
            Self::Http => "HTTP",
        })
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// What is not built with this program, and in which versions: Python, gevent, nginx.
pub(crate) fn others() -> Vec<String> {
    let mut versions = python::versions();
    versions.extend(http::nginx_version());
    versions
}

pub(crate) fn serve(options: &Options) -> anyhow::Result<()> {
    die_with_parent()?;
    if let Some(directory) = &options.http {
        return http::serve(options.contender, directory);
    }
    match (options.udp, options.large) {
        (true, _) => udp::serve(options.contender, options.stop),
        (false, false) => stream::serve::<1024>(options),
        (false, true) => stream::serve::<16_384>(options),
    }
}

/// Tells whoever measures where to find it.
fn announce(address: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{address}")?;
    out.flush()
}
