//! The load: clients on one thread that keep a server busy, check its answers, and count them.

mod churn;
mod echo;
mod http;
mod message;
mod open_loop;
mod protocol;
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

use crate::process::{ERROR_PREFIX, die_with_parent};
pub(crate) use http::TestFile;
pub(crate) use protocol::{Delays, Outcome, RunSpec};
use target::Target;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(value_enum)]
    kind: Kind,
    /// Address and port, or path of a Unix socket
    #[arg(value_name = "ADDRESS")]
    target: Target,
    /// Number of concurrent clients
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// Size of a message or a file in bytes
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Datagrams in flight per client
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// Messages per second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Warm-up before the load is ready, in milliseconds
    #[arg(long, default_value_t = 300)]
    warm_up: u64,
    /// Poll for answers without sleeping, so that the server does not pay for waking the load
    #[arg(long)]
    spin: bool,
}

/// True if the load polls. Set once, before the load starts.
static SPIN: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Connections that each send a message, wait for the echo, and send the next message
    Echo,
    /// Clients that each connect, send one message, wait for the echo, and close
    Churn,
    /// Datagrams, as many in flight as the windows allow
    Udp,
    /// Connections on which messages are sent at a fixed rate
    OpenLoop,
    /// Connections that each request a file over HTTP, and request it again once it is complete
    Http,
}

impl Kind {
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().into())
    }
}

/// Runs the load, controlled over stdin and stdout. Prints `ready` after the warm-up, then an
/// [`Outcome`] for each line with a [`RunSpec`]. Errors also go to stdout, because they belong
/// into the table.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if let Err(error) = work(options) {
        writeln!(io::stdout(), "{ERROR_PREFIX}{error:#}")?;
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
        Kind::Udp => Box::new(udp::Udp::new(
            target.inet()?,
            clients,
            size,
            window,
            LOSS_TIMEOUT,
        )?),
        Kind::Http => Box::new(http::Http::connect(target.inet()?, clients, size)?),
        Kind::OpenLoop => Box::new(open_loop::OpenLoop::connect(target, clients, size, rate)?),
    };
    if options.warm_up > 0 {
        load.run(RunSpec::of(Duration::from_millis(options.warm_up)))?;
    }
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    for line in io::stdin().lock().lines() {
        writeln!(out, "{}", load.run(line?.parse()?)?)?;
    }
    Ok(())
}

trait Load {
    /// Keeps the server busy for a time, and then waits for the outstanding answers.
    fn run(&mut self, spec: RunSpec) -> anyhow::Result<Outcome>;
}

/// Clients that each start the next request as soon as they have the answer to the last one.
trait ClosedLoop {
    /// The epoll set with all clients.
    fn epoll(&self) -> &OwnedFd;
    /// Starts a request of a client.
    fn start_request(&mut self, client: usize) -> anyhow::Result<()>;
    /// Reads the input of a client. Returns true if its answer is complete.
    fn on_readable(&mut self, client: usize) -> anyhow::Result<bool>;

    /// Runs these clients for a time, and waits for the last answers.
    fn run_clients(
        &mut self,
        clients: impl ExactSizeIterator<Item = usize>,
        time: Duration,
    ) -> anyhow::Result<Outcome> {
        let end = Instant::now() + time;
        let mut count = Outcome::default();
        let mut outstanding = clients.len();
        let mut events = NO_EVENTS;
        for client in clients {
            self.start_request(client)?;
        }
        while outstanding > 0 {
            let ready = wait_ready_or_fail(self.epoll(), &mut events)?;
            let time_is_up = Instant::now() >= end;
            for event in ready {
                let client = client_index(event)?;
                if !self.on_readable(client)? {
                    continue;
                }
                count.answered += 1;
                if time_is_up {
                    outstanding -= 1;
                } else {
                    self.start_request(client)?;
                }
            }
        }
        Ok(count)
    }
}

type Events = [MaybeUninit<epoll::Event>; 1024];

const NO_EVENTS: Events = [const { MaybeUninit::uninit() }; 1024];

/// Maximum length of one receive.
const BUFFER: usize = 64 << 10;

/// A datagram without an echo in this time counts as lost. A busy machine delays servers, too.
const LOSS_TIMEOUT: Duration = Duration::from_secs(1);

/// Time limit for an answer on a connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for clients with input. Returns an empty slice after `timeout`.
fn wait_ready<'a>(
    epoll: &OwnedFd,
    events: &'a mut Events,
    timeout: Duration,
) -> anyhow::Result<&'a [epoll::Event]> {
    if SPIN.load(Ordering::Relaxed) {
        let end = Instant::now() + timeout;
        let at_once = Some(&Timespec::default());
        let mut one = [MaybeUninit::uninit()];
        while epoll::wait(epoll, &mut one, at_once)?.0.is_empty() && Instant::now() < end {}
    }
    match epoll::wait(epoll, events, Some(&Timespec::try_from(timeout)?)) {
        Err(Errno::INTR) => Ok(&[]),
        ready => Ok(ready?.0),
    }
}

/// Waits for clients with input. Returns an error after [`ANSWER_TIMEOUT`].
fn wait_ready_or_fail<'a>(
    epoll: &OwnedFd,
    events: &'a mut Events,
) -> anyhow::Result<&'a [epoll::Event]> {
    let ready = wait_ready(epoll, events, ANSWER_TIMEOUT)?;
    ensure!(!ready.is_empty(), "no answer within ten seconds");
    Ok(ready)
}

fn register(epoll: &OwnedFd, socket: &OwnedFd, client: usize) -> rustix::io::Result<()> {
    let data = epoll::EventData::new_u64(client as u64);
    epoll::add(epoll, socket, data, epoll::EventFlags::IN)
}

/// Receives for a client. Returns `None` if there is no input, an empty slice at the end of the
/// stream.
fn receive<'a>(socket: &OwnedFd, buf: &'a mut [u8]) -> anyhow::Result<Option<&'a [u8]>> {
    match rustix::net::recv(socket, &mut *buf, RecvFlags::DONTWAIT) {
        Ok((n, _)) => Ok(Some(&buf[..n])),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn client_index(event: &epoll::Event) -> anyhow::Result<usize> {
    Ok(usize::try_from(event.data.u64())?)
}
