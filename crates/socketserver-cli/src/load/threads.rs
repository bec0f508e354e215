//! The threads of the load tool. They connect, begin together, and their counters are added up.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

use super::Options;
use super::progress::{ProgressLine, Stage};
use super::schedule::{Mode, RequestSchedule, Schedule};
use super::stats::Stats;
use super::worker::{Plan, Worker};

type Handle<'scope> = ScopedJoinHandle<'scope, anyhow::Result<Stats>>;

/// Generates the load. Returns the counters, and whether the load was interrupted.
pub(super) fn work(options: &Options, plan: &Plan) -> anyhow::Result<(Stats, bool)> {
    let mut screen = ProgressLine::new(&plan.progress);
    let threads = options.threads;
    let (tally, has_begun) = thread::scope(|scope| {
        // A worker sends its number of connections on this channel. A closed channel means that the
        // worker has ended.
        let (reports, connected) = channel();
        let mut starts = Vec::new();
        let mut handles: Vec<Handle<'_>> = Vec::new();
        for number in 0..threads {
            let connections = share(options.connections.into(), number, threads);
            let (start, started) = channel();
            let reports = reports.clone();
            let work = move || work_alone(plan, connections, &reports, &started);
            let builder = thread::Builder::new().name(format!("load {number}"));
            handles.push(builder.spawn_scoped(scope, work)?);
            starts.push(start);
        }
        drop(reports);
        let any = until_connected(&connected, &handles, &mut screen) || plan.churn;
        let has_begun = any && !plan.progress.stop.load(Ordering::Relaxed);
        let mut stage = Stage::Ending;
        if has_begun {
            let begin = Instant::now();
            let measured_from = begin + options.warm_up;
            for (number, start) in (0..threads).zip(&starts) {
                // A worker that does not take the message has failed, and reports its error when it
                // is joined.
                let _ = start.send(supply(options, number, begin, measured_from));
            }
            let end = options.time().map(|time| measured_from + time);
            stage = Stage::Loading { measured_from, end };
        }
        drop(starts);
        while let Err(RecvTimeoutError::Timeout) = connected.recv_timeout(screen.next()) {
            screen.show(stage);
        }
        Ok::<_, anyhow::Error>((gather(handles)?, has_begun))
    })?;
    screen.clear();
    let was_interrupted = plan.progress.stop.load(Ordering::Relaxed);
    if !has_begun && !was_interrupted {
        let reasons: Vec<_> = tally
            .kinds()
            .map(|(kind, n, detail)| format!("{n} × {}", detail.unwrap_or(kind.meaning())))
            .collect();
        bail!(
            "cannot connect to {}: {}",
            options.endpoint,
            reasons.join(", ")
        );
    }
    Ok((tally, was_interrupted))
}

fn work_alone(
    plan: &Plan,
    connections: u64,
    reports: &Sender<u64>,
    started: &Receiver<RequestSchedule>,
) -> anyhow::Result<Stats> {
    let mut worker = Worker::new(plan, usize::try_from(connections)?)?;
    reports.send(worker.connect()?)?;
    match started.recv() {
        Ok(supply) => worker.load(supply),
        // The load does not begin.
        Err(_) => Ok(worker.tally),
    }
}

/// Waits until the workers have connected. Returns true if there is any connection.
fn until_connected(
    connected: &Receiver<u64>,
    handles: &[Handle<'_>],
    screen: &mut ProgressLine<'_>,
) -> bool {
    let mut total = 0;
    let mut missing = handles.len();
    while missing > 0 {
        match connected.recv_timeout(screen.next()) {
            Ok(n) => {
                total += n;
                missing -= 1;
            }
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => {
                // A worker that has failed sends no number.
                if handles.iter().any(ScopedJoinHandle::is_finished) {
                    return false;
                }
                screen.show(Stage::Connecting);
            }
        }
    }
    total > 0
}

fn gather(handles: Vec<Handle<'_>>) -> anyhow::Result<Stats> {
    let mut total = Stats::new()?;
    for handle in handles {
        let tally = handle.join();
        total.add(tally.map_err(|_| anyhow!("a thread of the load tool has panicked"))??)?;
    }
    Ok(total)
}

/// Returns the schedule of one thread.
fn supply(
    options: &Options,
    number: u32,
    begin: Instant,
    measured_from: Instant,
) -> RequestSchedule {
    let threads = options.threads;
    let schedule = |rate: u32| Schedule {
        start: begin,
        rate: rate.into(),
        worker: number.into(),
        workers: threads.into(),
        next: 0,
    };
    RequestSchedule {
        times: options
            .rate
            .map_or(Mode::Closed, |rate| Mode::Open(schedule(rate))),
        measured_from,
        end: options.time().map(|time: Duration| measured_from + time),
        left: options.requests.map(|n| share(n.get(), number, threads)),
        is_closed: false,
    }
}

/// Returns the share of one thread. The first threads get the remainder.
fn share(n: u64, number: u32, of: u32) -> u64 {
    n / u64::from(of) + u64::from(u64::from(number) < n % u64::from(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_total() {
        for (n, of) in [(50, 1), (50, 3), (2, 5), (u64::MAX, 7)] {
            let shares: u128 = (0..of).map(|i| u128::from(share(n, i, of))).sum();
            assert_eq!(shares, u128::from(n));
        }
    }
}
