//! Who measures: starts servers and load, reads what the kernel says about them, and prints tables.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use clap::Args;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::contenders::Contender;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many rounds; the median is shown, with the lowest and the highest
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each measurement takes, in milliseconds
    #[arg(long, default_value_t = 1500)]
    time: u64,
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50, 1000])]
    connections: Vec<usize>,
    /// The size of a message in bytes
    #[arg(long, default_value_t = 64)]
    size: usize,
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "epoll,green,green-keep-alive,greenroom,tokio-current,tokio-multi,may,threading,std-thread"
    )]
    contenders: Vec<Contender>,
}

#[derive(Debug, Args)]
pub(crate) struct IdleOptions {
    #[arg(long, default_value_t = 15_000)]
    connections: usize,
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "epoll,green,green-keep-alive,greenroom,tokio-current,may"
    )]
    contenders: Vec<Contender>,
}

pub(crate) fn echo(options: &Options) -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{}", machine()?)?;
    writeln!(
        out,
        "Echo of {} bytes over TCP: CPU time of the server for one request, in microseconds. {} \
         interleaved rounds of {} ms; median (lowest to highest).\n",
        options.size, options.rounds, options.time
    )?;
    let mut results: BTreeMap<(usize, String), Vec<f64>> = BTreeMap::new();
    let mut load_share: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for _ in 0..options.rounds {
        for &connections in &options.connections {
            for &contender in &options.contenders {
                let (cost, share) =
                    measure(contender, connections, options).with_context(|| {
                        format!("{} with {connections} connections", contender.name())
                    })?;
                let key = (connections, contender.name());
                results.entry(key).or_default().push(cost);
                load_share.entry(connections).or_default().push(share);
            }
        }
    }
    write!(out, "| server |")?;
    for connections in &options.connections {
        write!(out, " C = {connections} | of epoll |")?;
    }
    writeln!(
        out,
        "\n|---|{}",
        "---|---|".repeat(options.connections.len())
    )?;
    for contender in &options.contenders {
        write!(out, "| {} |", contender.name())?;
        for &connections in &options.connections {
            let costs = &results[&(connections, contender.name())];
            let base = results.get(&(connections, Contender::Epoll.name()));
            let ratio = base.map_or(f64::NAN, |base| median(costs) / median(base));
            let (low, high) = range(costs);
            write!(
                out,
                " {:.2} ({low:.2} to {high:.2}) | {ratio:.2} |",
                median(costs)
            )?;
        }
        writeln!(out)?;
    }
    writeln!(out)?;
    for (connections, shares) in load_share {
        let share = median(&shares) * 100.0;
        writeln!(
            out,
            "C = {connections}: the load used {share:.0} % of its core."
        )?;
    }
    Ok(())
}

pub(crate) fn idle(options: &IdleOptions) -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{}", machine()?)?;
    writeln!(
        out,
        "Private memory of the server for each of {} connections that are silent, after one echo of \
         64 bytes on each; then all of them talk at once.\n\n| server | KiB per connection | answers \
         in a second |\n|---|---|---|",
        options.connections
    )?;
    for &contender in &options.contenders {
        let mut server = Process::start(0, &["serve", &contender.name()])?;
        let address = server.line()?;
        let before = server.private_memory()?;
        let count = options.connections.to_string();
        let mut load = Process::start(1, &["load", &address, "--connections", &count, "--idle"])?;
        ensure!(load.line()? == "ready");
        let after = server.private_memory()?;
        let answers = load.ask("1000")?;
        #[expect(clippy::cast_precision_loss, reason = "kibibytes for a table")]
        let each = after.saturating_sub(before) as f64 / options.connections as f64;
        writeln!(out, "| {} | {each:.2} | {answers} |", contender.name())?;
    }
    Ok(())
}

/// CPU microseconds of the server for one request, and the load's share of its core.
fn measure(
    contender: Contender,
    connections: usize,
    options: &Options,
) -> anyhow::Result<(f64, f64)> {
    let mut server = Process::start(0, &["serve", &contender.name()])?;
    let address = server.line()?;
    let (count, size) = (connections.to_string(), options.size.to_string());
    let args = ["load", &address, "--connections", &count, "--size", &size];
    let mut load = Process::start(1, &args)?;
    ensure!(load.line()? == "ready");
    let (server_before, load_before) = (server.cpu_time()?, load.cpu_time()?);
    let answers: u32 = load.ask(&options.time.to_string())?.parse()?;
    let server_time = server.cpu_time()? - server_before;
    let load_time = load.cpu_time()? - load_before;
    ensure!(answers > 0, "no answers");
    #[expect(clippy::cast_precision_loss, reason = "milliseconds for a table")]
    let share = load_time / 1e6 / options.time as f64;
    Ok((server_time / 1e3 / f64::from(answers), share))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    (low, values.iter().copied().fold(0.0, f64::max))
}

fn machine() -> anyhow::Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    Ok(format!(
        "Linux {}, {cores} cores; server on core 0, load on core 1.",
        kernel.trim()
    ))
}

/// This program in another role, pinned to a core, killed when it is dropped.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(core: usize, args: &[&str]) -> anyhow::Result<Self> {
        // What a child inherits from this thread.
        let mut cores = CpuSet::new();
        cores.set(core);
        sched_setaffinity(None, &cores)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "it has ended");
        Ok(line.trim().into())
    }

    fn ask(&mut self, question: &str) -> anyhow::Result<String> {
        writeln!(self.stdin, "{question}")?;
        self.line()
    }

    /// Nanoseconds on a core so far, all threads together.
    fn cpu_time(&self) -> anyhow::Result<f64> {
        let mut total = 0.0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let first = text.split_whitespace().next();
            total += first.and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
        }
        Ok(total)
    }

    /// In KiB: what belongs to this process alone.
    fn private_memory(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(path)?;
        let private = text.lines().filter(|line| line.starts_with("Private_"));
        let sizes = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        Ok(sizes.sum())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
