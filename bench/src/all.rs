//! Runs every benchmark in turn. Writes a table and a chart for each, and one file with all tables
//! that a README can include.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, ensure};
use clap::Args;

use crate::benchmarks::{
    Benchmark, Cost, Growth, Http, Idle, Latency, Sampling, Stop, expected_duration, run_rounds,
};
use crate::contenders::Transport;
use crate::environment::{self, Cores};
use crate::progress::{Progress, clock};
use crate::report::Report;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write `results.md` into this directory, and the table and the chart of each benchmark into
    /// its subdirectory `results`
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,
    /// Check that every contender builds and answers correctly: one short round with few
    /// connections; the figures are meaningless
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let benchmarks = if options.quick { quick() } else { full() };
    environment::ensure_descriptors(if options.quick { 256 } else { 16_000 })?;
    let cores = Cores::detect()?;
    let header = environment::describe(cores)?;
    let started = Instant::now();
    let total: Duration = benchmarks
        .iter()
        .map(|benchmark| expected_duration(benchmark.as_ref()))
        .sum();
    let tables = options.out.join("results");
    fs::create_dir_all(&tables).with_context(|| format!("cannot create {}", tables.display()))?;
    let mut progress = Progress::start(total, io::stderr())?;
    let mut reports = Vec::new();
    for benchmark in &benchmarks {
        let report = run_rounds(benchmark.as_ref(), cores, header.clone(), &mut progress)?;
        let name = &report.description.name;
        // Write each report at once, so that an interrupt loses only the running benchmark.
        write(&tables.join(format!("{name}.md")), &report.markdown())?;
        report.draw(&tables.join(format!("{name}.svg")))?;
        reports.push(report);
    }
    let section = section(&header, started.elapsed(), &reports);
    write(&options.out.join("results.md"), &section)?;
    progress.report("done")?;
    let failures: Vec<_> = reports
        .iter()
        .flat_map(|report| {
            let name = &report.description.name;
            let failures = report.failures().into_iter();
            failures.map(move |failure| format!("{name}: {failure}"))
        })
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn full() -> Vec<Box<dyn Benchmark>> {
    let sampling = Sampling {
        rounds: 5,
        time: 1000,
        warm_up: 250,
    };
    // A p99.9 needs many thousands of samples.
    let longer = Sampling {
        time: 2000,
        ..sampling
    };
    let shorter = Sampling {
        time: 600,
        warm_up: 100,
        ..sampling
    };
    vec![
        Box::new(Cost::echo(sampling, Transport::Tcp, 64, &[1, 50, 1000])),
        Box::new(Cost::echo(sampling, Transport::Tcp, 64, &[50, 1000]).with_spinning_load()),
        Box::new(Cost::echo(sampling, Transport::Tcp, 16 << 10, &[50])),
        Box::new(Cost::echo(sampling, Transport::Unix, 64, &[50])),
        Box::new(Cost::udp(sampling, 3, &[1, 16])),
        Box::new(Cost::churn(sampling, &[1, 50])),
        Box::new(Http::of(sampling, &[(1 << 10, 50), (1 << 20, 10)])),
        Box::new(Latency::of(longer, 5_000, 50)),
        Box::new(Latency::of(longer, 20_000, 50)),
        Box::new(Idle::of(15_000, 1000)),
        Box::new(Growth::of(
            shorter,
            &[100, 1000, 5000, 15_000],
            &[100, 1000],
        )),
        Box::new(Stop::of(5, &[0, 30])),
    ]
}

fn quick() -> Vec<Box<dyn Benchmark>> {
    let sampling = Sampling {
        rounds: 1,
        time: 100,
        warm_up: 20,
    };
    vec![
        Box::new(Cost::echo(sampling, Transport::Tcp, 64, &[1, 20])),
        Box::new(Cost::echo(sampling, Transport::Tcp, 16 << 10, &[20])),
        Box::new(Cost::echo(sampling, Transport::Unix, 64, &[20])),
        Box::new(Cost::udp(sampling, 3, &[2])),
        Box::new(Cost::churn(sampling, &[2])),
        Box::new(Http::of(sampling, &[(1 << 10, 5), (1 << 20, 2)])),
        Box::new(Latency::of(sampling, 1000, 20)),
        Box::new(Idle::of(100, 100)),
        Box::new(Growth::of(sampling, &[20, 100], &[10])),
        Box::new(Stop::of(1, &[0, 30])),
    ]
}

/// Formats the results section. Chart paths are relative to the directory of `results.md`.
fn section(header: &[String], took: Duration, reports: &[Report]) -> String {
    let mut out = "## Results\n\n".to_owned();
    for fact in header {
        let _ = writeln!(out, "* {fact}");
    }
    let _ = writeln!(out, "* elapsed time: {}", clock(took));
    for report in reports {
        let (name, title) = (&report.description.name, &report.description.title);
        let _ = write!(
            out,
            "\n### {title}\n\n{}\n![{title}](results/{name}.svg)\n",
            report.body()
        );
    }
    out
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn benchmark_names_are_unique_and_durations_are_bounded() {
        for benchmarks in [full(), quick()] {
            let names: BTreeSet<_> = benchmarks
                .iter()
                .map(|benchmark| benchmark.describe().name)
                .collect();
            assert_eq!(names.len(), benchmarks.len());
        }
        let total: Duration = full()
            .iter()
            .map(|benchmark| expected_duration(benchmark.as_ref()))
            .sum();
        assert!(total < Duration::from_secs(40 * 60), "{}", clock(total));
        let quick: Duration = quick()
            .iter()
            .map(|benchmark| expected_duration(benchmark.as_ref()))
            .sum();
        assert!(quick < Duration::from_secs(60), "{}", clock(quick));
    }
}
