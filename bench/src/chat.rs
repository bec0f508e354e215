//! A chat room full of clients, one of which is stopped: how long words take to the others, whether
//! all hear the same, and what becomes of the one.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};
use rustix::process::{Pid, Signal, kill_process};
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, EndReason, Event, Green, Room, RoomLimits, Server, Threading,
    handler_fn,
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many clients there are, the stopped one among them
    #[arg(long, default_value_t = 1000)]
    clients: usize,
    /// How many messages are sent in a second, by each client in turn
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// How many messages are sent
    #[arg(long, default_value_t = 400)]
    messages: u32,
    /// The size of a message in bytes
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// How many messages may wait for one client
    #[arg(long, default_value_t = 64)]
    outbox: usize,
    #[arg(long, value_enum, default_value_t)]
    model: Model,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Model {
    Threading,
    #[default]
    Green,
}

/// Stays in a room and reads, until it is stopped.
#[derive(Debug, Args)]
pub(crate) struct FrozenOptions {
    address: SocketAddr,
}

/// What the kernel keeps for a client, in bytes.
const BUFFER: usize = 32 << 10;

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    match options.model {
        Model::Threading => chat(Threading::new().max_threads(options.clients), options),
        Model::Green => chat(Green::new(), options),
    }
}

pub(crate) fn frozen(options: &FrozenOptions) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(options.address)?;
    sockopt::set_socket_recv_buffer_size(&stream, BUFFER)?;
    writeln!(io::stdout(), "in")?;
    io::copy(&mut stream, &mut io::sink())?;
    Ok(())
}

fn chat<C: Concurrency>(model: C, options: &Options) -> anyhow::Result<()> {
    let room = Room::with_limits(RoomLimits::default().messages(options.outbox));
    let (own, size) = (room.clone(), options.size);
    let (told, ends) = std::sync::mpsc::channel();
    let mut server = Server::<Tcp, C, ()>::builder()
        .concurrency(model)
        .on_event(move |event| {
            if let Event::Ended(_, end) = event {
                let _ = told.send(end.reason);
            }
        })
        .bind(
            "127.0.0.1:0",
            handler_fn(move |conn: &mut Connection| {
                // Otherwise the kernel keeps megabytes for who does not read.
                sockopt::set_socket_send_buffer_size(&*conn, BUFFER)?;
                let member = own.join(conn)?;
                let mut message = vec![0; size];
                while conn.read_exact(&mut message).is_ok() {
                    member.send(&message[..])?;
                }
                Ok(member.leave()?)
            }),
        )?;
    let address = server.local_addr().as_inet().context("it is TCP")?;
    let controller = server.controller();
    let serving = thread::spawn(move || server.serve_forever());

    let mut stopped = Stopped::enter(address)?;
    let mut crowd = Crowd::enter(address, options.clients - 1, options.size)?;
    while room.counters().members < options.clients {
        thread::sleep(Duration::from_millis(1));
    }
    stopped.stop()?;
    let delays = crowd.talk(options.messages, Duration::from_secs(1) / options.rate)?;
    let counters = room.counters();
    let ended: Vec<EndReason> = ends.try_iter().collect();
    controller.drain(Duration::ZERO);
    serving
        .join()
        .ok()
        .context("serving has panicked")?
        .map_err(|e| anyhow::anyhow!("{e}"))?;

    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (share * (delays.len() - 1) as f64) as usize;
        delays[index]
    };
    writeln!(
        io::stdout(),
        "{} clients under {}, {} messages of {} bytes at {} a second: {} deliveries, all in one order\n\
         from the first byte sent to the last one heard: median {:.1?}, p99 {:.1?}, longest {:.1?}\n\
         the stopped client: {} fell behind, ended as {:?}",
        options.clients,
        C::NAME,
        options.messages,
        options.size,
        options.rate,
        delays.len(),
        at(0.5),
        at(0.99),
        at(1.0),
        counters.fell_behind,
        ended,
    )?;
    Ok(())
}

/// A client in a process of its own.
struct Stopped(Child);

impl Stopped {
    fn enter(address: SocketAddr) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["frozen", &address.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let own = Self(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "in\n", "it did not connect");
        Ok(own)
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.0.id())?;
        let pid = Pid::from_raw(pid).context("no such process")?;
        Ok(kill_process(pid, Signal::STOP)?)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clients that all listen, and speak in turn.
struct Crowd {
    clients: Vec<Client>,
    epoll: OwnedFd,
    size: usize,
}

struct Client {
    socket: OwnedFd,
    /// Of a message that has not arrived whole.
    partial: Vec<u8>,
    /// How many messages it has heard.
    heard: usize,
}

impl Crowd {
    fn enter(address: SocketAddr, count: usize, size: usize) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let clients = (0..count)
            .map(|index| {
                let stream = TcpStream::connect(address)?;
                sockopt::set_tcp_nodelay(&stream, true)?;
                let data = epoll::EventData::new_u64(index as u64);
                epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
                Ok(Client {
                    socket: stream.into(),
                    partial: Vec::new(),
                    heard: 0,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            clients,
            epoll,
            size,
        })
    }

    /// Sends messages, and waits until everybody has heard all of them; how long each took to each,
    /// from the shortest to the longest.
    fn talk(&mut self, messages: u32, pause: Duration) -> anyhow::Result<Vec<Duration>> {
        let started = Instant::now();
        let mut sent = Vec::new();
        let mut order = Vec::new();
        let mut delays = Vec::new();
        let mut events = Vec::with_capacity(1024);
        let all = self.clients.len() * messages as usize;
        while delays.len() < all {
            let due = started + pause * u32::try_from(sent.len())?;
            let wait = if sent.len() < messages as usize {
                due.saturating_duration_since(Instant::now())
            } else {
                Duration::from_secs(10)
            };
            if wait.is_zero() {
                let number = u32::try_from(sent.len())?;
                let mut message = vec![b'.'; self.size];
                message[..4].copy_from_slice(&number.to_ne_bytes());
                sent.push(Instant::now());
                let speaker = &self.clients[number as usize % self.clients.len()];
                let n = rustix::io::write(&speaker.socket, &message)?;
                ensure!(n == message.len(), "the server does not read");
                continue;
            }
            events.clear();
            let timeout = Timespec::try_from(wait)?;
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(0) if sent.len() == messages as usize => anyhow::bail!("words were lost"),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let client = usize::try_from(event.data.u64())?;
                self.clients[client].listen(self.size, &sent, &mut order, &mut delays)?;
            }
        }
        delays.sort_unstable();
        Ok(delays)
    }
}

impl Client {
    fn listen(
        &mut self,
        size: usize,
        sent: &[Instant],
        order: &mut Vec<u32>,
        delays: &mut Vec<Duration>,
    ) -> anyhow::Result<()> {
        let mut bytes = [0; 65_536];
        let (n, _) = rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT)?;
        ensure!(n > 0, "a client that reads was cut");
        self.partial.extend_from_slice(&bytes[..n]);
        let whole = self.partial.len() / size;
        for message in self.partial.chunks_exact(size) {
            let number = u32::from_ne_bytes(message[..4].try_into()?);
            // Whoever hears one first says what the order is.
            let expected = *order.get(self.heard).unwrap_or(&number);
            order.extend((self.heard == order.len()).then_some(number));
            ensure!(number == expected, "{number} came instead of {expected}");
            self.heard += 1;
            delays.push(sent[number as usize].elapsed());
        }
        self.partial.drain(..whole * size);
        Ok(())
    }
}
