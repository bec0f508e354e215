//! The load: clients that keep a server busy, all on one thread, check what comes back, and count it.

mod churn;
mod echo;
mod http;
mod message;
mod outcome;
mod paced;
mod target;
mod udp;

use std::io::{self, BufRead, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::process::{ERROR, die_with_parent};
pub(crate) use http::Page;
pub(crate) use outcome::{Delays, Order, Outcome};
use target::Target;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(value_enum)]
    kind: Kind,
    /// An address with a port, or the path of a Unix socket
    #[arg(value_name = "ADDRESS")]
    target: Target,
    /// How many there are at once
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// The size of a message or of a file in bytes
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// How many datagrams of each client are under way at once
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// How many messages are sent in a second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// How long it runs before it is ready, in milliseconds
    #[arg(long, default_value_t = 300)]
    warm_up: u64,
    /// Look for answers all the time, so that no server pays for waking it up
    #[arg(long)]
    spin: bool,
}

/// Set once, before the load begins.
static SPIN: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Connections that each send a message, wait for it to come back, and send the next
    Echo,
    /// Clients that each connect, send one message, wait for it to come back, and close
    Churn,
    /// Datagrams, as many under way as the windows allow
    Udp,
    /// Connections on which messages are sent at a fixed rate
    Paced,
    /// Connections that each ask for a file over HTTP, and ask again when they have it
    Http,
}

impl Kind {
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().into())
    }
}

/// Speaks with whoever measures, over stdin and stdout: `ready` once it has connected and warmed
/// up; then for each line with an [`Order`] the [`Outcome`]. What goes wrong is told there, too, as it
/// belongs into the table.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if let Err(error) = work(options) {
        writeln!(io::stdout(), "{ERROR}{error:#}")?;
        std::process::exit(1);
    }
    Ok(())
}

fn work(options: &Options) -> anyhow::Result<()> {
    die_with_parent()?;
    let Options {
        ref target,
        clients,
        size,
        window,
        rate,
        ..
    } = *options;
    SPIN.store(options.spin, Ordering::Relaxed);
    let mut load: Box<dyn Load> = match options.kind {
        Kind::Echo => Box::new(echo::Echo::connect(target.clone(), clients, size)?),
        Kind::Churn => Box::new(churn::Churn::new(target.inet()?, clients, size)?),
        Kind::Udp => Box::new(udp::Udp::new(target.inet()?, clients, size, window, LOST)?),
        Kind::Http => Box::new(http::Http::connect(target.inet()?, clients, size)?),
        Kind::Paced => Box::new(paced::Paced::connect(target, clients, size, rate)?),
    };
    if options.warm_up > 0 {
        load.run(Order::of(Duration::from_millis(options.warm_up)))?;
    }
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    for line in io::stdin().lock().lines() {
        writeln!(out, "{}", load.run(line?.parse()?)?)?;
    }
    Ok(())
}

trait Load {
    /// Keeps the server busy for so long, and then lets what is under way come to its end.
    fn run(&mut self, order: Order) -> anyhow::Result<Outcome>;
}

/// Clients of which each begins anew as soon as it has its answer.
trait ClosedLoop {
    /// Where all of them are watched.
    fn epoll(&self) -> &OwnedFd;
    fn begin(&mut self, client: usize) -> anyhow::Result<()>;
    /// Takes what has come for one of them; whether that was the end of its answer.
    fn hear(&mut self, client: usize) -> anyhow::Result<bool>;

    /// Has these clients begin, and begin anew for so long; and waits for the last answers.
    fn go_round(
        &mut self,
        clients: impl ExactSizeIterator<Item = usize>,
        time: Duration,
    ) -> anyhow::Result<Outcome> {
        let end = Instant::now() + time;
        let mut count = Outcome::default();
        let mut outstanding = clients.len();
        let mut events = NO_EVENTS;
        for client in clients {
            self.begin(client)?;
        }
        while outstanding > 0 {
            let ready = next(self.epoll(), &mut events)?;
            let over = Instant::now() >= end;
            for event in ready {
                let client = client(event)?;
                if !self.hear(client)? {
                    continue;
                }
                count.answered += 1;
                if over {
                    outstanding -= 1;
                } else {
                    self.begin(client)?;
                }
            }
        }
        Ok(count)
    }
}

type Events = [MaybeUninit<epoll::Event>; 1024];

const NO_EVENTS: Events = [const { MaybeUninit::uninit() }; 1024];

/// What is received at once is no longer than this.
const BUFFER: usize = 64 << 10;

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

/// What has come for a client; nothing, if it was called in vain. An empty slice is the end.
fn receive<'a>(socket: &OwnedFd, buf: &'a mut [u8]) -> anyhow::Result<Option<&'a [u8]>> {
    match rustix::net::recv(socket, &mut *buf, RecvFlags::DONTWAIT) {
        Ok((n, _)) => Ok(Some(&buf[..n])),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn client(event: &epoll::Event) -> anyhow::Result<usize> {
    Ok(usize::try_from(event.data.u64())?)
}
