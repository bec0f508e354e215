//! Ten thousand coroutines on one thread, each of which sleeps ten times for a random duration.
//!
//! `cargo run --release --example timer_race`

use std::io::{self, Write};
use std::time::{Duration, Instant};

use greenroom::{Runtime, sleep, spawn};

fn main() -> io::Result<()> {
    const RUNNERS: u64 = 10_000;
    let runtime = Runtime::builder().workers(1).build()?;
    let started = Instant::now();
    let race = runtime.spawn(|| {
        let run = |n: u64| {
            move || {
                let mut random = n + 1;
                for _ in 0..10 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    sleep(Duration::from_micros(random % 10_000));
                }
                (Instant::now(), n)
            }
        };
        let all: Vec<_> = (0..RUNNERS).filter_map(|n| spawn(run(n)).ok()).collect();
        all.into_iter().filter_map(|one| one.join().ok()).min()
    });
    let first = race.map_err(io::Error::other)?.join();
    let mut out = io::stdout();
    if let Ok(Some((at, winner))) = first {
        writeln!(out, "runner {winner} wins after {:?}", at - started)?;
    }
    writeln!(
        out,
        "all {RUNNERS} have finished after {:?}",
        started.elapsed()
    )?;
    writeln!(out, "{:?}", runtime.counters())
}
