//! A soak test: clients of all kinds against a server that is drained and started again under load,
//! round after round. Each round checks that every message sent before the drain was answered, that
//! every accepted request ended with a reason, and that no descriptor is left. The run checks that
//! memory does not grow from round to round.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use rustix::net::sockopt;
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, Green, Pooled, RequestHandler, Result, Sequential, Server, Threading,
    Timeouts,
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Duration in seconds
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Duration of a round in seconds
    #[arg(long, default_value_t = 10)]
    round: u64,
    #[arg(long, value_enum, default_value_t)]
    model: Model,
    /// Number of concurrent clients
    #[arg(long, default_value_t = 64)]
    clients: u64,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Model {
    Sequential,
    Threading,
    Pooled,
    #[default]
    Green,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    // Handlers panic on purpose here; their messages would hide the output.
    std::panic::set_hook(Box::new(|_| {}));
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut out = io::stdout();
    let mut memory = Vec::new();
    let mut totals = Totals::default();
    let mut rounds = 0;
    while Instant::now() < end {
        rounds += 1;
        let seed = rounds * 0x9E37_79B9;
        let counts = match options.model {
            Model::Sequential => run_round(Sequential, options, seed),
            Model::Threading => run_round(Threading::new(), options, seed),
            Model::Pooled => run_round(Pooled::new().workers(16), options, seed),
            Model::Green => run_round(Green::new().workers(2), options, seed),
        }
        .with_context(|| format!("round {rounds}"))?;
        totals.add(&counts);
        memory.push(resident()?);
        writeln!(
            out,
            "round {rounds}: {} requests, {} answers, {} KiB resident, {} descriptors, {} threads",
            counts.accepted,
            counts.answers,
            memory[memory.len() - 1],
            descriptors()?,
            threads()?
        )?;
    }
    let (first, last) = (memory[memory.len() / 4], memory[memory.len() - 1]);
    writeln!(out, "{totals:#?}")?;
    writeln!(
        out,
        "resident memory after a quarter: {first} KiB, at the end: {last} KiB"
    )?;
    ensure!(last < first + first / 5 + 4096, "resident memory grows");
    writeln!(out, "no leak, no lost request")?;
    Ok(())
}

#[derive(Debug, Default)]
struct Totals {
    accepted: u64,
    completed: u64,
    failed: u64,
    panicked: u64,
    timed_out: u64,
    disconnected: u64,
    cancelled: u64,
    refused: u64,
    answers: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.completed += other.completed;
        self.failed += other.failed;
        self.panicked += other.panicked;
        self.timed_out += other.timed_out;
        self.disconnected += other.disconnected;
        self.cancelled += other.cancelled;
        self.refused += other.refused;
        self.answers += other.answers;
    }
}

/// Runs one server under load, from its bind to the end of its drain.
fn run_round<C: Concurrency>(model: C, options: &Options, seed: u64) -> anyhow::Result<Totals> {
    // The controller, which outlives the server, has one descriptor.
    let before = descriptors()? + 1;
    let timeouts = Timeouts::default()
        .idle(Some(Duration::from_secs(1)))
        .write(Some(Duration::from_millis(500)));
    let mut server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .timeouts(timeouts)
        .handle_error(|_, _| Ok(()))
        .bind("127.0.0.1:0", || ScriptedEcho)?;
    let address = server
        .local_addr()
        .as_inet()
        .context("the address is not TCP")?;
    let handle = server.handle();
    let serving = thread::spawn(move || server.serve_forever().map_err(|e| e.to_string()));
    let finished = Arc::new(AtomicBool::new(false));
    let draining = Arc::new(AtomicBool::new(false));
    let answers = Arc::new(AtomicU64::new(0));
    let unanswered = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..options.clients)
        .map(|n| {
            let (finished, draining) = (finished.clone(), draining.clone());
            let (answers, unanswered) = (answers.clone(), unanswered.clone());
            let mut random = Random(seed.wrapping_add(n.wrapping_mul(0x2545_F491_4F6C_DD1D)) | 1);
            thread::spawn(move || {
                while !finished.load(Ordering::Relaxed) {
                    match run_client(address, &mut random, &answers) {
                        Err(_) if !draining.load(Ordering::SeqCst) => {
                            unanswered.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => thread::yield_now(),
                    }
                }
            })
        })
        .collect();
    thread::sleep(Duration::from_secs(options.round));
    // Drain under load: some requests finish, others are cancelled.
    draining.store(true, Ordering::SeqCst);
    handle.drain(Duration::from_millis(seed % 400));
    let served = serving
        .join()
        .map_err(|_| anyhow::anyhow!("the server thread panicked"))?;
    served.map_err(anyhow::Error::msg)?;
    finished.store(true, Ordering::Relaxed);
    for client in clients {
        client
            .join()
            .map_err(|_| anyhow::anyhow!("a client thread panicked"))?;
    }
    let report = handle
        .drain_report()
        .context("the server has no drain report")?;
    let end = Instant::now() + Duration::from_secs(10);
    while handle.active_count() > 0 || descriptors()? > before {
        ensure!(
            Instant::now() < end,
            "{} requests did not end; open descriptors: {:?}, expected {before}; {report:?}",
            handle.active_count(),
            open_files()?
        );
        thread::sleep(Duration::from_millis(5));
    }
    let unanswered = unanswered.load(Ordering::Relaxed);
    ensure!(unanswered == 0, "{unanswered} messages were not answered");
    let counters = handle.counters();
    ensure!(
        counters.accepted == counters.ended + counters.refused,
        "a request ended without a reason: {counters:?}"
    );
    let unusual = counters.failed
        + counters.panicked
        + counters.timed_out
        + counters.disconnected
        + counters.cancelled;
    Ok(Totals {
        accepted: counters.accepted,
        completed: counters.ended - unusual,
        failed: counters.failed,
        panicked: counters.panicked,
        timed_out: counters.timed_out,
        disconnected: counters.disconnected,
        cancelled: counters.cancelled,
        refused: counters.refused,
        answers: answers.load(Ordering::Relaxed),
    })
}

/// A handler that does what the first byte of a message selects.
struct ScriptedEcho;

impl RequestHandler<Connection> for ScriptedEcho {
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        let mut message = [0; 64];
        loop {
            let n = conn.read(&mut message)?;
            match message[0] {
                _ if n == 0 => return Ok(()),
                b'p' => panic!("panic on request"),
                b'e' => return Err("error on request".into()),
                b's' => greenroom::sleep(Duration::from_millis(3)),
                b'y' => greenroom::yield_now(),
                b'l' => conn.write_all(&[0; 100_000])?,
                _ => {}
            }
            conn.write_all(&message[..n])?;
            if message[0] == b'k' {
                conn.suspend_until_readable();
                return Ok(());
            }
        }
    }
}

/// Runs one client connection.
fn run_client(address: SocketAddr, random: &mut Random, answers: &AtomicU64) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    for _ in 0..random.below(20) {
        let kind = *b"aaaaaaaakkkksyl".get(random.index(15)).unwrap_or(&b'a');
        stream.write_all(&[kind; 16])?;
        let length = if kind == b'l' { 100_016 } else { 16 };
        if kind == b'l' && random.below(4) == 0 {
            // Disconnect without reading the answer.
            return Ok(());
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer)?;
        answers.fetch_add(1, Ordering::Relaxed);
    }
    // All answers have been received; errors while disconnecting are expected.
    let _ = disconnect(&mut stream, random);
    Ok(())
}

fn disconnect(stream: &mut TcpStream, random: &mut Random) -> io::Result<()> {
    match random.below(8) {
        0 => stream.write_all(b"p")?,
        1 => stream.write_all(b"e")?,
        2 => sockopt::set_socket_linger(stream, Some(Duration::ZERO))?,
        3 => {
            stream.shutdown(Shutdown::Write)?;
            stream.read_to_end(&mut Vec::new())?;
        }
        // Stay silent until the server's idle timeout.
        4 if random.below(10) == 0 => drop(stream.read(&mut [0])?),
        // Disconnect while the server is sending.
        5 => stream.write_all(b"l")?,
        _ => {}
    }
    Ok(())
}

/// The xorshift64 generator.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn index(&mut self, bound: u64) -> usize {
        usize::try_from(self.below(bound)).unwrap_or(0)
    }
}

fn descriptors() -> anyhow::Result<usize> {
    Ok(open_files()?.len())
}

fn open_files() -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // The list includes the descriptor of the directory itself, which is closed by now.
        if let Ok(file) = fs::read_link(entry?.path()) {
            files.push(file.display().to_string());
        }
    }
    Ok(files)
}

fn threads() -> anyhow::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

fn resident() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let size = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(size.context("/proc/self/status has no VmRSS")?.parse()?)
}
