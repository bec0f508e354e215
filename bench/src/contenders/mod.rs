//! The servers that take part. Each echoes its input, with a buffer of 1 or 16 KiB per connection,
//! or serves the files of a directory over HTTP.

mod actix;
mod epoll;
mod http;
#[allow(
    unsafe_code,
    reason = "the kernel gets addresses of buffers; each block argues that they stay valid"
)]
mod io_uring;
mod may;
mod monoio;
mod python;
mod socketserver;
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
    /// Serve UDP
    #[arg(long, conflicts_with = "unix")]
    udp: bool,
    /// Serve Unix streams on a socket with this path
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Serve the subdirectory `files` of this directory over HTTP; the server may write other
    /// files into the directory
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["udp", "unix", "large", "stop"])]
    http: Option<PathBuf>,
    /// Use a buffer of 16 KiB for each connection, instead of 1 KiB
    #[arg(long)]
    large: bool,
    /// Stop cleanly at SIGTERM, without waiting for clients
    #[arg(long)]
    stop: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Contender {
    /// A bare epoll loop, the core of every event-driven server
    Epoll,
    /// A bare io_uring loop
    IoUring,
    /// The green model
    Green,
    /// The green model, with connections suspended between messages (`Connection::suspend_until_readable`)
    GreenKeepAlive,
    /// The green model, with an event observer and metrics
    GreenWatched,
    /// greenroom alone, the runtime of the green model
    Greenroom,
    /// The threading model
    Threading,
    /// The threading model, with an event observer and metrics
    ThreadingWatched,
    /// The forking model
    Forking,
    /// The pooled model
    Pooled,
    /// The pooled model, with connections suspended between messages (`Connection::suspend_until_readable`)
    PooledKeepAlive,
    /// The sequential model: one request at a time
    Sequential,
    /// tokio on one thread
    TokioCurrent,
    /// tokio on two threads
    TokioMulti,
    /// actix-server with one worker
    Actix,
    /// monoio on io_uring
    Monoio,
    /// may with one worker
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
    /// hyper on tokio, on one thread
    Hyper,
}

/// The group that a contender belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    BareLoop,
    ThisProject,
    Others,
}

/// The transport between clients and servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
    Udp,
    /// HTTP/1.1, over TCP.
    Http,
}

impl Group {
    pub(crate) const ALL: [Self; 3] = [Self::BareLoop, Self::ThisProject, Self::Others];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BareLoop => "a bare loop",
            Self::ThisProject => "this project",
            Self::Others => "others",
        }
    }
}

impl Contender {
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().into())
    }

    pub(crate) fn group(self) -> Group {
        match self {
            Self::Epoll | Self::IoUring => Group::BareLoop,
            Self::Green
            | Self::GreenKeepAlive
            | Self::GreenWatched
            | Self::Greenroom
            | Self::Threading
            | Self::ThreadingWatched
            | Self::Forking
            | Self::Pooled
            | Self::PooledKeepAlive
            | Self::Sequential => Group::ThisProject,
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
            | Self::Hyper => Group::Others,
        }
    }

    /// Returns true if this program has such a server.
    pub(crate) fn supports(self, transport: Transport) -> bool {
        match transport {
            Transport::Tcp | Transport::Unix => !matches!(self, Self::Nginx | Self::Hyper),
            Transport::Udp => !matches!(
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
            Transport::Http => matches!(
                self,
                Self::Green | Self::Threading | Self::Pooled | Self::Nginx | Self::Hyper
            ),
        }
    }

    /// Returns true if the server can be stopped cleanly, by itself or as its documentation shows.
    pub(crate) fn has_clean_stop(self) -> bool {
        match self.group() {
            Group::BareLoop => false,
            Group::ThisProject => self != Self::Greenroom,
            Group::Others => !matches!(
                self,
                Self::Monoio | Self::May | Self::StdThread | Self::Nginx | Self::Hyper
            ),
        }
    }

    /// Returns the maximum number of open connections to measure. Where each connection has a
    /// thread or a process, the limit is what a system of ordinary size has room for.
    pub(crate) fn max_connections(self) -> usize {
        match self {
            Self::Sequential => 1,
            // The default number of threads.
            Self::Pooled => 32,
            Self::Forking | Self::PythonThreading => 1_000,
            Self::Threading | Self::ThreadingWatched | Self::StdThread => 5_000,
            _ => 20_000,
        }
    }

    /// Returns the reason why the server cannot run on this system, if there is one.
    pub(crate) fn unavailable_reason(self, transport: Transport) -> Option<String> {
        if transport == Transport::Http {
            return http::unavailable_reason(self);
        }
        match self {
            Self::IoUring | Self::Monoio => io_uring::unavailable_reason(),
            Self::PythonThreading | Self::PythonAsyncio | Self::PythonGevent => {
                python::unavailable_reason(self)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Transport {
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

/// Returns the versions of the servers that are not built with this program: Python, gevent, nginx.
pub(crate) fn external_versions() -> Vec<String> {
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

/// Prints the address of the server, for the benchmark that has started it.
fn announce(address: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{address}")?;
    out.flush()
}
