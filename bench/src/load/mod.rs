//! The load: clients that keep a server busy, all on one thread, and count what comes back.

mod churn;
mod echo;
mod udp;

use std::fmt;
use std::io::{self, BufRead, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(value_enum)]
    kind: Kind,
    address: SocketAddr,
    /// How many there are at once
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// The size of a message in bytes
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// How many datagrams of each client are under way at once
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// How long it runs before it is ready, in milliseconds
    #[arg(long, default_value_t = 300)]
    warm_up: u64,
    /// Look for answers all the time, so that no server pays for waking it up
    #[arg(long)]
    spin: bool,
}

/// Set once, before the load begins.
static SPIN: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// Connections that each send a message, wait for it to come back, and send the next
    Echo,
    /// Clients that each connect, send one message, wait for it to come back, and close
    Churn,
    /// Datagrams, as many under way as the windows allow
    Udp,
}

impl Kind {
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().into())
    }
}

/// Speaks with whoever measures, over stdin and stdout: `ready` once it has connected and warmed
/// up; then for each line `MILLISECONDS` the [`Count`] of that time.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Options {
        address,
        clients,
        size,
        window,
        ..
    } = *options;
    SPIN.store(options.spin, Ordering::Relaxed);
    let mut load: Box<dyn Load> = match options.kind {
        Kind::Echo => Box::new(echo::Echo::connect(address, clients, size)?),
        Kind::Churn => Box::new(churn::Churn::new(address, clients, size)?),
        Kind::Udp => Box::new(udp::Udp::new(address, clients, size, window, LOST)?),
    };
    if options.warm_up > 0 {
        load.run(Duration::from_millis(options.warm_up))?;
    }
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    for line in io::stdin().lock().lines() {
        let time = Duration::from_millis(line?.trim().parse()?);
        writeln!(out, "{}", load.run(time)?)?;
    }
    Ok(())
}

trait Load {
    /// Keeps the server busy for so long, and then lets what is under way come to its end.
    fn run(&mut self, time: Duration) -> anyhow::Result<Count>;
}

/// What became of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) answered: u32,
    pub(crate) lost: u32,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.answered, self.lost)
    }
}

impl FromStr for Count {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (answered, lost) = text.split_once(' ').context("no two figures")?;
        Ok(Self {
            answered: answered.parse()?,
            lost: lost.parse()?,
        })
    }
}

type Events = [MaybeUninit<epoll::Event>; 1024];

const NO_EVENTS: Events = [const { MaybeUninit::uninit() }; 1024];

/// After that, a datagram is lost, and not only late: a busy machine keeps a server waiting, too.
const LOST: Duration = Duration::from_secs(1);

/// How long a connection may be silent before that is an error.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which clients have something to read; none of them, if nothing comes for `patience`.
fn ready<'a>(
    epoll: &OwnedFd,
    events: &'a mut Events,
    patience: Duration,
) -> anyhow::Result<&'a [epoll::Event]> {
    if SPIN.load(Ordering::Relaxed) {
        let end = Instant::now() + patience;
        let at_once = Some(&Timespec::default());
        let mut one = [MaybeUninit::uninit()];
        while epoll::wait(epoll, &mut one, at_once)?.0.is_empty() && Instant::now() < end {}
    }
    match epoll::wait(epoll, events, Some(&Timespec::try_from(patience)?)) {
        Err(Errno::INTR) => Ok(&[]),
        ready => Ok(ready?.0),
    }
}

/// The same where silence is an error.
fn next<'a>(epoll: &OwnedFd, events: &'a mut Events) -> anyhow::Result<&'a [epoll::Event]> {
    let ready = ready(epoll, events, PATIENCE)?;
    ensure!(!ready.is_empty(), "no answer for ten seconds");
    Ok(ready)
}

fn watch(epoll: &OwnedFd, socket: &OwnedFd, client: usize) -> rustix::io::Result<()> {
    let data = epoll::EventData::new_u64(client as u64);
    epoll::add(epoll, socket, data, epoll::EventFlags::IN)
}

fn client(event: &epoll::Event) -> anyhow::Result<usize> {
    Ok(usize::try_from(event.data.u64())?)
}
