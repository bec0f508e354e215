//! A chat room with many clients, one of which is stopped. Measures how long messages take to reach
//! the other clients, checks that all receive the same order, and reports how the server ended the
//! stopped client.

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
    /// Number of clients, including the stopped one
    #[arg(long, default_value_t = 1000)]
    clients: usize,
    /// Messages per second, sent by the clients in turn
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// Total number of messages
    #[arg(long, default_value_t = 400)]
    messages: u32,
    /// Size of a message in bytes
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// Outbox capacity of one client, in messages
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

/// The stopped client: joins a room and reads until it is stopped.
#[derive(Debug, Args)]
pub(crate) struct FrozenOptions {
    address: SocketAddr,
}

/// Kernel socket buffer of a client, in bytes.
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
    writeln!(io::stdout(), "joined")?;
    io::copy(&mut stream, &mut io::sink())?;
    Ok(())
}

fn chat<C: Concurrency>(model: C, options: &Options) -> anyhow::Result<()> {
    let room = Room::with_limits(RoomLimits::default().messages(options.outbox));
    let (member_room, size) = (room.clone(), options.size);
    let (reasons, ends) = std::sync::mpsc::channel();
    let mut server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .on_event(move |event| {
            if let Event::Ended(_, end) = event {
                let _ = reasons.send(end.reason);
            }
        })
        .bind(
            "127.0.0.1:0",
            handler_fn(move |conn: &mut Connection| {
                // Without this limit, the kernel buffers megabytes for a client that does not read.
                sockopt::set_socket_send_buffer_size(&*conn, BUFFER)?;
                let member = member_room.join(conn)?;
                let mut message = vec![0; size];
                while conn.read_exact(&mut message).is_ok() {
                    member.send(&message[..])?;
                }
                Ok(member.leave()?)
            }),
        )?;
    let address = server
        .local_addr()
        .as_inet()
        .context("the address is not TCP")?;
    let handle = server.handle();
    let serving = thread::spawn(move || server.serve_forever());

    let mut stopped = StoppedClient::connect(address)?;
    let mut group = ClientGroup::connect(address, options.clients - 1, options.size)?;
    while room.counters().members < options.clients {
        thread::sleep(Duration::from_millis(1));
    }
    stopped.stop()?;
    let delays = group.exchange(options.messages, Duration::from_secs(1) / options.rate)?;
    let counters = room.counters();
    let ended: Vec<EndReason> = ends.try_iter().collect();
    handle.drain(Duration::ZERO);
    serving
        .join()
        .ok()
        .context("the server thread panicked")?
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
        "{} clients, model {}: {} messages of {} bytes at {} per second\n\
         {} deliveries, all in one order\n\
         delay from the first byte sent to the last byte received: \
         median {:.1?}, p99 {:.1?}, maximum {:.1?}\n\
         the stopped client: {} slow consumers, ended as {:?}",
        options.clients,
        C::NAME,
        options.messages,
        options.size,
        options.rate,
        delays.len(),
        at(0.5),
        at(0.99),
        at(1.0),
        counters.slow_consumer,
        ended,
    )?;
    Ok(())
}

/// A client in its own process, which is stopped by SIGSTOP.
struct StoppedClient(Child);

impl StoppedClient {
    fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["frozen", &address.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("the client has no stdout")?;
        let client = Self(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(
            line == "joined\n",
            "the client that is stopped did not connect"
        );
        Ok(client)
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.0.id())?;
        let pid = Pid::from_raw(pid).context("no such process")?;
        Ok(kill_process(pid, Signal::STOP)?)
    }
}

impl Drop for StoppedClient {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clients that all receive, and send in turn.
struct ClientGroup {
    clients: Vec<Client>,
    epoll: OwnedFd,
    size: usize,
}

struct Client {
    socket: OwnedFd,
    /// Bytes of an incomplete message.
    partial: Vec<u8>,
    /// Number of messages that this client has received.
    received: usize,
}

impl ClientGroup {
    fn connect(address: SocketAddr, count: usize, size: usize) -> anyhow::Result<Self> {
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
                    received: 0,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            clients,
            epoll,
            size,
        })
    }

    /// Sends messages, and waits until every client has received all of them. Returns the delay of
    /// each delivery, in ascending order.
    fn exchange(&mut self, messages: u32, pause: Duration) -> anyhow::Result<Vec<Duration>> {
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
                let sender = &self.clients[number as usize % self.clients.len()];
                let n = rustix::io::write(&sender.socket, &message)?;
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
                Ok(0) if sent.len() == messages as usize => anyhow::bail!("messages were lost"),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let client = usize::try_from(event.data.u64())?;
                self.clients[client].receive(self.size, &sent, &mut order, &mut delays)?;
            }
        }
        delays.sort_unstable();
        Ok(delays)
    }
}

impl Client {
    fn receive(
        &mut self,
        size: usize,
        sent: &[Instant],
        order: &mut Vec<u32>,
        delays: &mut Vec<Duration>,
    ) -> anyhow::Result<()> {
        let mut bytes = [0; 65_536];
        let (n, _) = rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT)?;
        ensure!(n > 0, "the server closed a client that reads");
        self.partial.extend_from_slice(&bytes[..n]);
        let whole = self.partial.len() / size;
        for message in self.partial.chunks_exact(size) {
            let number = u32::from_ne_bytes(message[..4].try_into()?);
            // The first client that receives a message sets the expected order.
            let expected = *order.get(self.received).unwrap_or(&number);
            order.extend((self.received == order.len()).then_some(number));
            ensure!(
                number == expected,
                "a client received message {number} instead of {expected}"
            );
            self.received += 1;
            delays.push(sent[number as usize].elapsed());
        }
        self.partial.drain(..whole * size);
        Ok(())
    }
}
