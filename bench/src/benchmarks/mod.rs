//! The benchmarks. Each one defines what to measure. This module runs the measurements of any
//! benchmark, round after round.

mod cost;
mod growth;
mod http;
mod idle;
mod latency;
mod lineup;
mod run;
mod sampling;
mod stop;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;

pub(crate) use cost::{ChurnOptions, Cost, EchoOptions, UdpOptions};
pub(crate) use growth::Growth;
pub(crate) use http::Http;
pub(crate) use idle::Idle;
pub(crate) use latency::Latency;
pub(crate) use sampling::Sampling;
pub(crate) use stop::Stop;

use crate::contenders::{Contender, Transport};
use crate::environment::{self, Cores};
use crate::progress::Progress;
use crate::report::{Cell, Description, Report, Row, Sample};

/// A comparison of contenders.
pub(crate) trait Benchmark {
    fn describe(&self) -> Description;

    fn transport(&self) -> Transport {
        Transport::Tcp
    }

    fn contenders(&self) -> &[Contender];

    /// Returns the number of times that each measurement is repeated.
    fn rounds(&self) -> usize;

    /// Returns true if a contender takes part in a part.
    fn includes(&self, _contender: Contender, _part: usize) -> bool {
        true
    }

    /// Estimates the duration of a measurement, including the start of its processes.
    fn duration(&self, contender: Contender, part: usize) -> Duration;

    fn measure(&self, contender: Contender, part: usize, cores: Cores) -> anyhow::Result<Sample>;
}

/// The chart of a benchmark that runs alone.
#[derive(Debug, Args)]
pub(crate) struct ChartOptions {
    /// Also draw a chart of the medians and ranges into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Runs one benchmark, and prints its report.
pub(crate) fn run_and_print(benchmark: &dyn Benchmark, chart: &ChartOptions) -> anyhow::Result<()> {
    let transport = benchmark.transport();
    for contender in benchmark.contenders() {
        ensure!(
            contender.supports(transport),
            "{contender} has no {transport} server here"
        );
    }
    let cores = Cores::detect()?;
    let header = environment::describe(cores)?;
    let mut progress = Progress::start(expected_duration(benchmark), io::stderr())?;
    let report = run_rounds(benchmark, cores, header, &mut progress)?;
    report.publish(chart.svg.as_deref())
}

/// Estimates the duration of a benchmark.
pub(crate) fn expected_duration(benchmark: &dyn Benchmark) -> Duration {
    let parts = benchmark.describe().parts.len();
    let present = benchmark.contenders().iter().copied();
    let each = present.flat_map(|contender| {
        let parts = (0..parts).filter(move |part| benchmark.includes(contender, *part));
        parts.map(move |part| benchmark.duration(contender, part))
    });
    each.sum::<Duration>() * u32::try_from(benchmark.rounds()).unwrap_or(1)
}

/// Runs the rounds of a benchmark. Rounds are interleaved, so that a disturbance of the machine
/// affects all contenders alike. A contender that fails is left out of the rest of that part.
pub(crate) fn run_rounds(
    benchmark: &dyn Benchmark,
    cores: Cores,
    header: Vec<String>,
    progress: &mut Progress,
) -> anyhow::Result<Report> {
    let description = benchmark.describe();
    let (mut rows, mut skipped) = (Vec::new(), Vec::new());
    for &contender in benchmark.contenders() {
        let mut parts = 0..description.parts.len();
        if !parts.any(|part| benchmark.includes(contender, part)) {
            continue;
        }
        if let Some(why) = contender.unavailable_reason(benchmark.transport()) {
            progress.report(&format!("{}: {contender} skipped: {why}", description.name))?;
            skipped.push((contender, why));
            continue;
        }
        let cell = |part| {
            if benchmark.includes(contender, part) {
                Cell::Measured(Vec::new())
            } else {
                Cell::NotApplicable
            }
        };
        let cells = (0..description.parts.len()).map(cell).collect();
        rows.push(Row { contender, cells });
    }
    let rounds = benchmark.rounds();
    for round in 1..=rounds {
        progress.report(&format!("{}: round {round} of {rounds}", description.name))?;
        for part in 0..description.parts.len() {
            for row in &mut rows {
                let contender = row.contender;
                let cell = &mut row.cells[part];
                let Cell::Measured(samples) = cell else {
                    continue;
                };
                match benchmark.measure(contender, part, cores) {
                    Ok(sample) => samples.push(sample),
                    Err(error) => {
                        let name = &description.parts[part].name;
                        progress.report(&format!("{contender}, {name}: {error:#}"))?;
                        *cell = Cell::Failed(format!("{error:#}"));
                    }
                }
                progress.complete(benchmark.duration(contender, part));
            }
        }
    }
    Ok(Report {
        header,
        description,
        rows,
        skipped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Column, Part};
    use std::cell::RefCell;

    /// Records the measurements, and fails for one contender.
    struct Fake(RefCell<Vec<(Contender, usize)>>);

    impl Benchmark for Fake {
        fn describe(&self) -> Description {
            let part = |name: &str| Part {
                name: name.into(),
                columns: vec![Column {
                    name: name.into(),
                    point: None,
                }],
            };
            Description {
                name: "fake".into(),
                title: String::new(),
                unit: String::new(),
                method: String::new(),
                baselines: Vec::new(),
                notes: Vec::new(),
                parts: vec![part("one"), part("two")],
            }
        }

        fn contenders(&self) -> &[Contender] {
            &[Contender::Epoll, Contender::Sequential, Contender::May]
        }

        fn rounds(&self) -> usize {
            2
        }

        fn includes(&self, contender: Contender, part: usize) -> bool {
            contender != Contender::Sequential || part == 0
        }

        fn duration(&self, _: Contender, _: usize) -> Duration {
            Duration::from_secs(1)
        }

        fn measure(&self, contender: Contender, part: usize, _: Cores) -> anyhow::Result<Sample> {
            self.0.borrow_mut().push((contender, part));
            ensure!(
                contender != Contender::May || part == 0,
                "failed on purpose"
            );
            Ok(Sample {
                values: vec![1.0],
                notes: Vec::new(),
            })
        }
    }

    #[test]
    fn rounds_are_interleaved_and_failed_contenders_are_not_repeated() {
        use Contender::{Epoll, May, Sequential};
        let fake = Fake(RefCell::default());
        let mut progress = Progress::start(expected_duration(&fake), io::sink()).unwrap();
        assert_eq!(expected_duration(&fake), Duration::from_secs(10));
        let cores = Cores::detect().unwrap();
        let report = run_rounds(&fake, cores, Vec::new(), &mut progress).unwrap();
        let first = [(Epoll, 0), (Sequential, 0), (May, 0), (Epoll, 1), (May, 1)];
        assert_eq!(*fake.0.borrow(), [&first[..], &first[..4]].concat());
        assert_eq!(report.failures(), ["may, two: failed on purpose"]);
        assert!(matches!(report.rows[1].cells[1], Cell::NotApplicable));
    }
}
