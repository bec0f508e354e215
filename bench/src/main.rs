//! Compares servers: CPU time per request, memory per connection, latency, time to stop.
//!
//! `cargo run --release -p bench -- all --out bench` runs every benchmark. `echo`, `churn`, `udp`,
//! `http`, `latency`, `growth`, `idle` and `stop` run one each. Each contender runs in a process of
//! its own on one core, and the load runs on another core. Rounds are interleaved, so that a
//! disturbance of the machine affects all contenders alike. Compare ratios within one run; absolute
//! figures hold only for the machine that is named above the table. README.md has the method.
#![deny(unsafe_code)]

mod all;
mod benchmarks;
mod chart;
mod chat;
mod contenders;
mod environment;
mod load;
mod process;
mod progress;
mod report;
mod soak;
mod usage;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every benchmark, and write tables and charts
    All(all::Options),
    /// Compare the CPU time of an echo over TCP or Unix streams
    Echo(benchmarks::EchoOptions),
    /// Compare the CPU time of a TCP connection: connect, one echo, close
    Churn(benchmarks::ChurnOptions),
    /// Compare the CPU time of an echo over UDP, and count lost datagrams
    Udp(benchmarks::UdpOptions),
    /// Compare the CPU time of a file over HTTP, and the requests per second
    Http(benchmarks::Http),
    /// Compare latencies at a fixed message rate
    Latency(benchmarks::Latency),
    /// Compare the CPU time of an echo as the number of open connections grows
    Growth(benchmarks::Growth),
    /// Compare the memory of idle connections
    Idle(benchmarks::Idle),
    /// Compare the time to stop
    Stop(benchmarks::Stop),
    /// Fill a chat room, stop one client, and measure how long messages take to reach the others
    Chat(chat::Options),
    /// Be the client that `chat` stops (started by `chat`)
    Frozen(chat::FrozenOptions),
    /// Run clients of all kinds against one server for a long time, and look for leaks
    Soak(soak::Options),
    /// Be one of the servers (started by the benchmarks)
    Serve(contenders::Options),
    /// Be the load (started by the benchmarks)
    Load(load::Options),
}

fn main() -> anyhow::Result<()> {
    use benchmarks::{Cost, run_and_print};
    let command = Cli::parse().command;
    environment::raise_descriptor_limit()?;
    match command {
        Command::All(options) => all::run(&options),
        Command::Echo(options) => run_and_print(&Cost::from(&options), &options.chart),
        Command::Churn(options) => run_and_print(&Cost::from(&options), &options.chart),
        Command::Udp(options) => run_and_print(&Cost::from(&options), &options.chart),
        Command::Http(benchmark) => run_and_print(&benchmark, &benchmark.chart),
        Command::Latency(benchmark) => run_and_print(&benchmark, &benchmark.chart),
        Command::Growth(benchmark) => run_and_print(&benchmark, &benchmark.chart),
        Command::Idle(benchmark) => run_and_print(&benchmark, &benchmark.chart),
        Command::Stop(benchmark) => run_and_print(&benchmark, &benchmark.chart),
        Command::Chat(options) => chat::run(&options),
        Command::Frozen(options) => chat::frozen(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Serve(options) => contenders::serve(&options),
        Command::Load(options) => load::run(&options),
    }
}
