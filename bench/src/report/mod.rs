//! The results of a benchmark, as a table in Markdown. This module measures nothing.

mod markdown;

use std::path::Path;
use std::{fs, io};

use anyhow::{Context, ensure};

use crate::chart;
use crate::contenders::Contender;

/// The description of a benchmark.
pub(crate) struct Description {
    /// Name of the command and of the files.
    pub(crate) name: String,
    pub(crate) title: String,
    /// Unit of the values.
    pub(crate) unit: String,
    pub(crate) method: String,
    /// The contenders that the others are compared with.
    pub(crate) baselines: Vec<Contender>,
    pub(crate) notes: Vec<Note>,
    pub(crate) parts: Vec<Part>,
}

/// A case of a benchmark: the columns that one measurement fills.
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) columns: Vec<Column>,
}

pub(crate) struct Column {
    pub(crate) name: String,
    /// Position on a line, if the chart has lines.
    pub(crate) point: Option<Point>,
}

pub(crate) struct Point {
    pub(crate) line: String,
    pub(crate) x: f64,
}

/// A figure that is shown below the table of values.
pub(crate) struct Note {
    pub(crate) name: &'static str,
    /// Reduces the figures of the rounds to the one that is shown.
    pub(crate) aggregate: fn(&[f64]) -> f64,
    pub(crate) format: fn(f64) -> String,
}

/// The result of one measurement.
pub(crate) struct Sample {
    /// One value for each column; fewer if the contender has a lower maximum of connections.
    pub(crate) values: Vec<f64>,
    pub(crate) notes: Vec<f64>,
}

pub(crate) enum Cell {
    /// The contender does not take part.
    NotApplicable,
    Failed(String),
    /// One sample for each round.
    Measured(Vec<Sample>),
}

pub(crate) struct Row {
    pub(crate) contender: Contender,
    /// One cell for each part.
    pub(crate) cells: Vec<Cell>,
}

pub(crate) struct Report {
    /// The machine, the versions and the command: one fact per item.
    pub(crate) header: Vec<String>,
    pub(crate) description: Description,
    pub(crate) rows: Vec<Row>,
    /// Contenders that cannot run on this system, and the reasons.
    pub(crate) skipped: Vec<(Contender, String)>,
}

impl Report {
    /// Prints the table, and draws the chart if a path is given.
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

    /// Returns every failure, with its contender and part.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for row in &self.rows {
            for (part, cell) in self.description.parts.iter().zip(&row.cells) {
                if let Cell::Failed(why) = cell {
                    failures.push(format!("{}, {}: {why}", row.contender, part.name));
                }
            }
        }
        failures
    }

    /// Returns the columns from left to right, each with its part and its index in the part.
    pub(crate) fn columns(&self) -> impl Iterator<Item = (usize, usize, &Column)> {
        let parts = self.description.parts.iter().enumerate();
        parts.flat_map(|(part, case)| {
            let columns = case.columns.iter().enumerate();
            columns.map(move |(index, column)| (part, index, column))
        })
    }
}

impl Row {
    /// Returns the figures of a column, or `None` if the contender did not take part or failed.
    pub(crate) fn figures(&self, part: usize, column: usize) -> Option<Figures> {
        let Some(Cell::Measured(samples)) = self.cells.get(part) else {
            return None;
        };
        let value = |sample: &Sample| sample.values.get(column).copied();
        let values: Vec<_> = samples.iter().filter_map(value).collect();
        (!values.is_empty()).then_some(Figures(values))
    }
}

/// The values of one contender in one column, one for each round.
pub(crate) struct Figures(Vec<f64>);

/// Relative difference of medians below which overlapping ranges are a tie.
const TIE_THRESHOLD: f64 = 0.1;

impl Figures {
    pub(crate) fn median(&self) -> f64 {
        median(&self.0)
    }

    /// Returns the lowest and the highest value.
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

    fn compared_with(&self, baseline: &Self) -> String {
        let ratio = self.median() / baseline.median();
        let ((low, high), (baseline_low, baseline_high)) = (self.range(), baseline.range());
        let overlap = low <= baseline_high && baseline_low <= high;
        if overlap && (ratio - 1.0).abs() < TIE_THRESHOLD {
            format!("{ratio:.2}, a tie")
        } else {
            format!("{ratio:.2}")
        }
    }
}

/// Returns the median; NaN if there are no values.
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
            notes: vec![0.9 + value / 100.0],
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
            description: Description {
                name: "example".into(),
                title: "An example".into(),
                unit: "microseconds".into(),
                method: "How.".into(),
                baselines: vec![Contender::Epoll],
                notes: vec![Note {
                    name: "load's core",
                    aggregate: median,
                    format: |share| format!("{:.0} %", 100.0 * share),
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
                    Cell::NotApplicable,
                ),
                row(
                    Contender::May,
                    Cell::Failed("the process ended".into()),
                    samples(&[2.5]),
                ),
            ],
            skipped: vec![(Contender::PythonGevent, "no gevent".into())],
        }
    }

    #[test]
    fn failures_name_contender_and_part() {
        assert_eq!(example().failures(), ["may, C = 1: the process ended"]);
    }

    #[test]
    fn median_of_even_and_odd_counts() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[3.0]).to_bits(), 3.0_f64.to_bits());
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5_f64.to_bits());
    }
}
