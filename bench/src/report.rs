//! What was measured, as a table in Markdown. It measures nothing.

mod markdown;

use std::path::Path;
use std::{fs, io};

use anyhow::{Context, ensure};

use crate::chart;
use crate::contenders::Contender;

/// What is asked, and how it is measured.
pub(crate) struct Subject {
    /// Of the command, and of the files.
    pub(crate) name: String,
    pub(crate) title: String,
    /// What a value is.
    pub(crate) unit: String,
    pub(crate) method: String,
    /// Whom the others are compared with.
    pub(crate) bases: Vec<Contender>,
    /// What is told of each part beside its values.
    pub(crate) asides: Vec<Aside>,
    pub(crate) parts: Vec<Part>,
}

/// What is measured at a time.
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) columns: Vec<Column>,
}

pub(crate) struct Column {
    pub(crate) name: String,
    /// Where it stands on a line, if the picture has lines.
    pub(crate) point: Option<Point>,
}

pub(crate) struct Point {
    pub(crate) line: String,
    pub(crate) x: f64,
}

pub(crate) struct Aside {
    pub(crate) name: &'static str,
    /// Of the rounds, which one is shown.
    pub(crate) fold: fn(&[f64]) -> f64,
    pub(crate) show: fn(f64) -> String,
}

/// What one measurement came to.
pub(crate) struct Sample {
    /// One for each column of the part; fewer if there is no room for so many connections.
    pub(crate) values: Vec<f64>,
    pub(crate) asides: Vec<f64>,
}

pub(crate) enum Cell {
    /// It does not take part in this.
    Absent,
    Failed(String),
    /// One for each round.
    Measured(Vec<Sample>),
}

pub(crate) struct Row {
    pub(crate) contender: Contender,
    /// One for each part.
    pub(crate) cells: Vec<Cell>,
}

pub(crate) struct Report {
    /// Where, and by which command: one fact to a line.
    pub(crate) header: Vec<String>,
    pub(crate) subject: Subject,
    pub(crate) rows: Vec<Row>,
    /// Who cannot run on this system, and why.
    pub(crate) skipped: Vec<(Contender, String)>,
}

impl Report {
    /// Prints the table, and draws it if that is wanted.
    pub(crate) fn publish(&self, svg: Option<&Path>) -> anyhow::Result<()> {
        io::Write::write_all(&mut io::stdout(), self.markdown().as_bytes())?;
        if let Some(path) = svg {
            self.draw(path)?;
        }
        let failures = self.failures();
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(())
    }

    pub(crate) fn draw(&self, path: &Path) -> anyhow::Result<()> {
        fs::write(path, chart::draw(self))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// All that did not go well.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for row in &self.rows {
            for (part, cell) in self.subject.parts.iter().zip(&row.cells) {
                if let Cell::Failed(why) = cell {
                    failures.push(format!("{}, {}: {why}", row.contender, part.name));
                }
            }
        }
        failures
    }

    /// One for each column, from left to right, with the part that it belongs to.
    pub(crate) fn columns(&self) -> impl Iterator<Item = (usize, usize, &Column)> {
        let parts = self.subject.parts.iter().enumerate();
        parts.flat_map(|(part, of)| {
            let columns = of.columns.iter().enumerate();
            columns.map(move |(index, column)| (part, index, column))
        })
    }
}

impl Row {
    /// Nothing, if it did not take part or has failed.
    pub(crate) fn figures(&self, part: usize, column: usize) -> Option<Figures> {
        let Some(Cell::Measured(samples)) = self.cells.get(part) else {
            return None;
        };
        let value = |sample: &Sample| sample.values.get(column).copied();
        let values: Vec<_> = samples.iter().filter_map(value).collect();
        (!values.is_empty()).then_some(Figures(values))
    }
}

/// The values of one contender in one column: one for each round.
pub(crate) struct Figures(Vec<f64>);

/// Figures that differ by less than this, and whose ranges overlap, are equal.
const TIE: f64 = 0.1;

impl Figures {
    pub(crate) fn median(&self) -> f64 {
        median(&self.0)
    }

    /// The lowest and the highest.
    pub(crate) fn range(&self) -> (f64, f64) {
        let low = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        (low, highest(&self.0))
    }

    pub(crate) fn summary(&self) -> String {
        match (self.median(), self.range()) {
            (median, _) if self.0.len() < 2 => format!("{median:.2}"),
            (median, (low, high)) => format!("{median:.2} ({low:.2} to {high:.2})"),
        }
    }

    fn compared_with(&self, base: &Self) -> String {
        let ratio = self.median() / base.median();
        let ((low, high), (base_low, base_high)) = (self.range(), base.range());
        let overlap = low <= base_high && base_low <= high;
        if overlap && (ratio - 1.0).abs() < TIE {
            format!("{ratio:.2}, a tie")
        } else {
            format!("{ratio:.2}")
        }
    }
}

/// The middle, or what lies between the two that are next to it; NaN of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => f64::NAN,
        (middle, 0) => f64::midpoint(sorted[middle - 1], sorted[middle]),
        (middle, _) => sorted[middle],
    }
}

pub(crate) fn highest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Cell {
        let sample = |value: &f64| Sample {
            values: vec![*value],
            asides: vec![0.9 + value / 100.0],
        };
        Cell::Measured(values.iter().map(sample).collect())
    }

    pub(crate) fn example() -> Report {
        let part = |name: &str, x| Part {
            name: name.into(),
            columns: vec![Column {
                name: name.into(),
                point: Some(Point {
                    line: "all active".into(),
                    x,
                }),
            }],
        };
        let row = |contender, first: Cell, second: Cell| Row {
            contender,
            cells: vec![first, second],
        };
        Report {
            header: vec!["Linux".into(), "bench <echo> & more".into()],
            subject: Subject {
                name: "example".into(),
                title: "An example".into(),
                unit: "microseconds".into(),
                method: "How.".into(),
                bases: vec![Contender::Epoll],
                asides: vec![Aside {
                    name: "load's core",
                    fold: median,
                    show: |share| format!("{:.0} %", 100.0 * share),
                }],
                parts: vec![part("C = 1", 1.0), part("C = 50", 50.0)],
            },
            rows: vec![
                row(
                    Contender::Epoll,
                    samples(&[4.0, 3.0, 5.0]),
                    samples(&[2.0, 2.0, 2.0]),
                ),
                row(
                    Contender::Green,
                    samples(&[4.1, 4.2, 4.3]),
                    samples(&[3.0, 3.0, 3.0]),
                ),
                row(
                    Contender::Threading,
                    samples(&[8.0, 6.5, 7.0]),
                    Cell::Absent,
                ),
                row(
                    Contender::May,
                    Cell::Failed("it has ended".into()),
                    samples(&[2.5]),
                ),
            ],
            skipped: vec![(Contender::PythonGevent, "no gevent".into())],
        }
    }

    #[test]
    fn failures_are_told_with_their_place() {
        assert_eq!(example().failures(), ["may, C = 1: it has ended"]);
    }

    #[test]
    fn medians() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[3.0]).to_bits(), 3.0_f64.to_bits());
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5_f64.to_bits());
    }
}
