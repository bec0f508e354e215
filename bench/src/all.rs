//! Every question, one after the other: a table and a picture for each, and one file with all of the
//! tables that a README can include whole.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, ensure};
use clap::Args;

use crate::contenders::Wire;
use crate::machine::{self, Cores};
use crate::progress::{Progress, clock};
use crate::questions::{
    Cost, Growth, Http, Idle, Latency, Method, Question, Stop, answer, expected,
};
use crate::report::Report;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write `results.md` into this directory, and a table and a picture for each question into
    /// `results` within it
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,
    /// Only show that everybody can be built and answers rightly: one short round with few
    /// connections, whose figures say nothing
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let questions = if options.quick { quick() } else { whole() };
    machine::ensure_descriptors(if options.quick { 256 } else { 16_000 })?;
    let cores = Cores::look()?;
    let header = machine::describe(cores)?;
    let begun = Instant::now();
    let total: Duration = questions.iter().map(|one| expected(one.as_ref())).sum();
    let tables = options.out.join("results");
    fs::create_dir_all(&tables).with_context(|| format!("cannot make {}", tables.display()))?;
    let mut progress = Progress::begin(total, io::stderr())?;
    let mut reports = Vec::new();
    for question in &questions {
        let report = answer(question.as_ref(), cores, header.clone(), &mut progress)?;
        let name = &report.subject.name;
        // One by one, so that nothing is lost if this is interrupted.
        write(&tables.join(format!("{name}.md")), &report.markdown())?;
        report.draw(&tables.join(format!("{name}.svg")))?;
        reports.push(report);
    }
    let section = section(&header, begun.elapsed(), &reports);
    write(&options.out.join("results.md"), &section)?;
    progress.tell("done")?;
    let failures: Vec<_> = reports
        .iter()
        .flat_map(|report| {
            let name = &report.subject.name;
            let failures = report.failures().into_iter();
            failures.map(move |failure| format!("{name}: {failure}"))
        })
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn whole() -> Vec<Box<dyn Question>> {
    let method = Method {
        rounds: 5,
        time: 1000,
        warm_up: 250,
    };
    // What one in a thousand is like shows in many thousands only.
    let longer = Method {
        time: 2000,
        ..method
    };
    let shorter = Method {
        time: 600,
        warm_up: 100,
        ..method
    };
    vec![
        Box::new(Cost::echo(method, Wire::Tcp, 64, &[1, 50, 1000])),
        Box::new(Cost::echo(method, Wire::Tcp, 64, &[50, 1000]).spinning()),
        Box::new(Cost::echo(method, Wire::Tcp, 16 << 10, &[50])),
        Box::new(Cost::echo(method, Wire::Unix, 64, &[50])),
        Box::new(Cost::udp(method, 3, &[1, 16])),
        Box::new(Cost::churn(method, &[1, 50])),
        Box::new(Http::of(method, &[(1 << 10, 50), (1 << 20, 10)])),
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

fn quick() -> Vec<Box<dyn Question>> {
    let method = Method {
        rounds: 1,
        time: 100,
        warm_up: 20,
    };
    vec![
        Box::new(Cost::echo(method, Wire::Tcp, 64, &[1, 20])),
        Box::new(Cost::echo(method, Wire::Tcp, 16 << 10, &[20])),
        Box::new(Cost::echo(method, Wire::Unix, 64, &[20])),
        Box::new(Cost::udp(method, 3, &[2])),
        Box::new(Cost::churn(method, &[2])),
        Box::new(Http::of(method, &[(1 << 10, 5), (1 << 20, 2)])),
        Box::new(Latency::of(method, 1000, 20)),
        Box::new(Idle::of(100, 100)),
        Box::new(Growth::of(method, &[20, 100], &[10])),
        Box::new(Stop::of(1, &[0, 30])),
    ]
}

/// From its heading on, with pictures that are found from the directory it is in.
fn section(header: &[String], took: Duration, reports: &[Report]) -> String {
    let mut out = "## Results\n\n".to_owned();
    for fact in header {
        let _ = writeln!(out, "* {fact}");
    }
    let _ = writeln!(out, "* it took {}", clock(took));
    for report in reports {
        let (name, title) = (&report.subject.name, &report.subject.title);
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
    fn questions_have_names_of_their_own_and_a_run_ends_in_time() {
        for questions in [whole(), quick()] {
            let names: BTreeSet<_> = questions.iter().map(|one| one.subject().name).collect();
            assert_eq!(names.len(), questions.len());
        }
        let total: Duration = whole().iter().map(|one| expected(one.as_ref())).sum();
        assert!(total < Duration::from_secs(40 * 60), "{}", clock(total));
        let quick: Duration = quick().iter().map(|one| expected(one.as_ref())).sum();
        assert!(quick < Duration::from_secs(60), "{}", clock(quick));
    }
}
