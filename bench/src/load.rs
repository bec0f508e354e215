//! The load: connections that each send a message, wait for it to come back, and send the next.

use std::io::{self, BufRead, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

#[derive(Debug, Args)]
pub(crate) struct Options {
    address: SocketAddr,
    #[arg(long, default_value_t = 50)]
    connections: usize,
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Only hold the connections, after one message on each
    #[arg(long)]
    idle: bool,
}

/// Speaks with whoever measures, over stdin and stdout: `ready` once all connections have had an
/// answer; then for each line `MILLISECONDS` the number of answers in that time.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut load = Load::connect(options)?;
    let mut out = io::stdout();
    if !options.idle {
        load.run(Duration::from_millis(300))?;
    }
    writeln!(out, "ready")?;
    for line in io::stdin().lock().lines() {
        let time = Duration::from_millis(line?.trim().parse()?);
        writeln!(out, "{}", load.run(time)?)?;
    }
    Ok(())
}

struct Load {
    epoll: OwnedFd,
    streams: Vec<(OwnedFd, usize)>,
    message: Vec<u8>,
}

impl Load {
    fn connect(options: &Options) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let message = vec![b'x'; options.size];
        let mut streams = Vec::new();
        for number in 0..options.connections {
            let stream = connect(options.address).context("cannot connect")?;
            stream.set_nodelay(true)?;
            exchange(&stream, &message)?;
            stream.set_nonblocking(true)?;
            let stream = OwnedFd::from(stream);
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
            streams.push((stream, 0));
        }
        Ok(Self {
            epoll,
            streams,
            message,
        })
    }

    /// Sends and receives on all connections; returns how many answers came.
    fn run(&mut self, time: Duration) -> anyhow::Result<u64> {
        let end = Instant::now() + time;
        let mut answers = 0;
        let mut outstanding = self.streams.len();
        let mut events = [const { MaybeUninit::uninit() }; 1024];
        let mut buf = [0; 65_536];
        for (stream, missing) in &mut self.streams {
            *missing = self.message.len();
            send(stream, &self.message)?;
        }
        let mut over = false;
        while outstanding > 0 {
            let patience = Timespec::try_from(Duration::from_secs(10))?;
            let (events, _) = match epoll::wait(&self.epoll, &mut events, Some(&patience)) {
                Err(Errno::INTR) => continue,
                events => events?,
            };
            ensure!(!events.is_empty(), "no answer for ten seconds");
            over = over || Instant::now() >= end;
            for event in events {
                let (stream, missing) = &mut self.streams[usize::try_from(event.data.u64())?];
                let n = match rustix::net::recv(&*stream, &mut buf, RecvFlags::empty()) {
                    Ok((n, _)) => n,
                    Err(Errno::AGAIN | Errno::INTR) => continue,
                    Err(errno) => return Err(errno.into()),
                };
                ensure!(
                    n > 0 && n <= *missing,
                    "the server closed, or sent too much"
                );
                *missing -= n;
                if *missing > 0 {
                    continue;
                }
                answers += u64::from(!over);
                if over {
                    outstanding -= 1;
                } else {
                    *missing = self.message.len();
                    send(stream, &self.message)?;
                }
            }
        }
        Ok(answers)
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match TcpStream::connect(address) {
            // One contender binds the port anew.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            connected => return connected,
        }
    }
}

fn exchange(mut stream: &TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message)?;
    io::Read::read_exact(&mut stream, &mut vec![0; message.len()])
}

fn send(stream: &OwnedFd, message: &[u8]) -> anyhow::Result<()> {
    let n = rustix::net::send(stream, message, SendFlags::NOSIGNAL)?;
    ensure!(n == message.len(), "the server does not read");
    Ok(())
}
