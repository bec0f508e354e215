//! What is asked of the servers. Each question says what to measure; how the measurements are put in
//! order, round after round, is the same for all, and is here.

mod bout;
mod cost;
mod field;
mod growth;
mod http;
mod idle;
mod latency;
mod method;
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
pub(crate) use method::Method;
pub(crate) use stop::Stop;

use crate::contenders::{Contender, Wire};
use crate::machine::{self, Cores};
use crate::progress::Progress;
use crate::report::{Cell, Report, Row, Sample, Subject};

pub(crate) trait Question {
    fn subject(&self) -> Subject;

    fn wire(&self) -> Wire {
        Wire::Tcp
    }

    fn contenders(&self) -> &[Contender];

    /// How often each measurement is made.
    fn rounds(&self) -> usize;

    /// Whether a contender takes part in a part.
    fn admits(&self, _contender: Contender, _part: usize) -> bool {
        true
    }

    /// How long a measurement takes, about, with the start of the processes.
    fn duration(&self, contender: Contender, part: usize) -> Duration;

    fn measure(&self, contender: Contender, part: usize, cores: Cores) -> anyhow::Result<Sample>;
}

/// For questions that are asked alone.
#[derive(Debug, Args)]
pub(crate) struct Picture {
    /// Draw the medians and the ranges into this file, too
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Asks one question, and prints the answer.
pub(crate) fn ask(question: &dyn Question, picture: &Picture) -> anyhow::Result<()> {
    let wire = question.wire();
    for contender in question.contenders() {
        ensure!(
            contender.serves(wire),
            "{contender} has no server over {wire} here"
        );
    }
    let cores = Cores::look()?;
    let header = machine::describe(cores)?;
    let mut progress = Progress::begin(expected(question), io::stderr())?;
    let report = answer(question, cores, header, &mut progress)?;
    report.publish(picture.svg.as_deref())
}

/// How long it takes to answer a question, about.
pub(crate) fn expected(question: &dyn Question) -> Duration {
    let parts = question.subject().parts.len();
    let present = question.contenders().iter().copied();
    let each = present.flat_map(|contender| {
        let parts = (0..parts).filter(move |part| question.admits(contender, *part));
        parts.map(move |part| question.duration(contender, part))
    });
    each.sum::<Duration>() * u32::try_from(question.rounds()).unwrap_or(1)
}

/// Rounds are interleaved: whatever disturbs the machine for a while disturbs all alike. Who fails
/// is left out of what is left of that part.
pub(crate) fn answer(
    question: &dyn Question,
    cores: Cores,
    header: Vec<String>,
    progress: &mut Progress,
) -> anyhow::Result<Report> {
    let subject = question.subject();
    let (mut rows, mut skipped) = (Vec::new(), Vec::new());
    for &contender in question.contenders() {
        let mut parts = 0..subject.parts.len();
        if !parts.any(|part| question.admits(contender, part)) {
            continue;
        }
        if let Some(why) = contender.missing(question.wire()) {
            progress.tell(&format!("{}: no {contender}, as {why}", subject.name))?;
            skipped.push((contender, why));
            continue;
        }
        let cell = |part| {
            if question.admits(contender, part) {
                Cell::Measured(Vec::new())
            } else {
                Cell::Absent
            }
        };
        let cells = (0..subject.parts.len()).map(cell).collect();
        rows.push(Row { contender, cells });
    }
    let rounds = question.rounds();
    for round in 1..=rounds {
        progress.tell(&format!("{}: round {round} of {rounds}", subject.name))?;
        for part in 0..subject.parts.len() {
            for row in &mut rows {
                let contender = row.contender;
                let cell = &mut row.cells[part];
                let Cell::Measured(samples) = cell else {
                    continue;
                };
                match question.measure(contender, part, cores) {
                    Ok(sample) => samples.push(sample),
                    Err(error) => {
                        let name = &subject.parts[part].name;
                        progress.tell(&format!("{contender}, {name}: {error:#}"))?;
                        *cell = Cell::Failed(format!("{error:#}"));
                    }
                }
                progress.done(question.duration(contender, part));
            }
        }
    }
    Ok(Report {
        header,
        subject,
        rows,
        skipped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Column, Part};
    use std::cell::RefCell;

    /// Takes down who was asked, and fails for one of them.
    struct Fake(RefCell<Vec<(Contender, usize)>>);

    impl Question for Fake {
        fn subject(&self) -> Subject {
            let part = |name: &str| Part {
                name: name.into(),
                columns: vec![Column {
                    name: name.into(),
                    point: None,
                }],
            };
            Subject {
                name: "fake".into(),
                title: String::new(),
                unit: String::new(),
                method: String::new(),
                bases: Vec::new(),
                asides: Vec::new(),
                parts: vec![part("one"), part("two")],
            }
        }

        fn contenders(&self) -> &[Contender] {
            &[Contender::Epoll, Contender::Sequential, Contender::May]
        }

        fn rounds(&self) -> usize {
            2
        }

        fn admits(&self, contender: Contender, part: usize) -> bool {
            contender != Contender::Sequential || part == 0
        }

        fn duration(&self, _: Contender, _: usize) -> Duration {
            Duration::from_secs(1)
        }

        fn measure(&self, contender: Contender, part: usize, _: Cores) -> anyhow::Result<Sample> {
            self.0.borrow_mut().push((contender, part));
            ensure!(contender != Contender::May || part == 0, "wrong");
            Ok(Sample {
                values: vec![1.0],
                asides: Vec::new(),
            })
        }
    }

    #[test]
    fn rounds_are_interleaved_and_who_fails_is_not_asked_again() {
        use Contender::{Epoll, May, Sequential};
        let fake = Fake(RefCell::default());
        let mut progress = Progress::begin(expected(&fake), io::sink()).unwrap();
        assert_eq!(expected(&fake), Duration::from_secs(10));
        let cores = Cores::look().unwrap();
        let report = answer(&fake, cores, Vec::new(), &mut progress).unwrap();
        let first = [(Epoll, 0), (Sequential, 0), (May, 0), (Epoll, 1), (May, 1)];
        assert_eq!(*fake.0.borrow(), [&first[..], &first[..4]].concat());
        assert_eq!(report.failures(), ["may, two: wrong"]);
        assert!(matches!(report.rows[1].cells[1], Cell::Absent));
    }
}
