//! What was measured, as a table in Markdown. It measures nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use anyhow::Context;

use crate::chart;
use crate::contenders::Contender;

/// Rows of contenders that differ by less than this, and whose ranges overlap, are equal.
const TIE: f64 = 0.1;

pub(crate) struct Report {
    /// Where, and by which command: one fact to a line.
    pub(crate) header: Vec<String>,
    pub(crate) title: String,
    /// What a value is.
    pub(crate) unit: String,
    /// How it was measured.
    pub(crate) method: String,
    /// Whom the others are compared with.
    pub(crate) base: Option<Contender>,
    /// The names of further columns.
    pub(crate) asides: Vec<&'static str>,
    pub(crate) cases: Vec<Case>,
}

/// One table.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) rows: Vec<Row>,
}

pub(crate) struct Row {
    pub(crate) contender: Contender,
    /// One for each round.
    pub(crate) values: Vec<f64>,
    pub(crate) asides: Vec<String>,
}

impl Report {
    /// Prints the tables, and draws them if that is wanted.
    pub(crate) fn publish(&self, svg: Option<&Path>) -> anyhow::Result<()> {
        io::Write::write_all(&mut io::stdout(), self.markdown().as_bytes())?;
        if let Some(path) = svg {
            fs::write(path, chart::draw(self))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut out = format!("# {}\n\n", self.title);
        for fact in &self.header {
            let _ = writeln!(out, "* {fact}");
        }
        let _ = writeln!(out, "\n{}", self.method);
        for case in &self.cases {
            let mut heads = vec!["server".into(), self.unit.clone()];
            heads.extend(self.base.map(|base| format!("of {}", base.name())));
            heads.extend(self.asides.iter().map(ToString::to_string));
            let _ = writeln!(out, "\n## {}\n\n{}", case.name, line(&heads));
            let _ = writeln!(out, "|{}", "---|".repeat(heads.len()));
            let base = case
                .rows
                .iter()
                .find(|row| Some(row.contender) == self.base);
            for row in &case.rows {
                let mut cells = vec![row.contender.name(), row.summary()];
                if self.base.is_some() {
                    cells.push(base.map_or_else(String::new, |base| row.compared_with(base)));
                }
                cells.extend(row.asides.iter().cloned());
                let _ = writeln!(out, "{}", line(&cells));
            }
        }
        out
    }
}

fn line(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

impl Row {
    pub(crate) fn median(&self) -> f64 {
        median(&self.values)
    }

    /// The lowest and the highest.
    pub(crate) fn range(&self) -> (f64, f64) {
        let low = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        (low, self.values.iter().copied().fold(0.0, f64::max))
    }

    pub(crate) fn summary(&self) -> String {
        match (self.median(), self.range()) {
            (median, _) if self.values.len() < 2 => format!("{median:.2}"),
            (median, (low, high)) => format!("{median:.2} ({low:.2} to {high:.2})"),
        }
    }

    fn compared_with(&self, base: &Self) -> String {
        let ratio = self.median() / base.median();
        let ((low, high), (base_low, base_high)) = (self.range(), base.range());
        let overlap = low <= base_high && base_low <= high;
        if self.contender != base.contender && overlap && (ratio - 1.0).abs() < TIE {
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Report {
        let row = |contender, values: &[f64], aside: &str| Row {
            contender,
            values: values.to_vec(),
            asides: vec![aside.into()],
        };
        Report {
            header: vec!["Linux".into(), "bench <echo> & more".into()],
            title: "An example".into(),
            unit: "microseconds".into(),
            method: "How.".into(),
            base: Some(Contender::Epoll),
            asides: vec!["load's core"],
            cases: vec![Case {
                name: "C = 1".into(),
                rows: vec![
                    row(Contender::Epoll, &[4.0, 3.0, 5.0], "90 %"),
                    row(Contender::Green, &[4.1, 4.2, 4.3], "91 %"),
                    row(Contender::Threading, &[8.0, 6.5, 7.0], "92 %"),
                ],
            }],
        }
    }

    #[test]
    fn a_table_has_the_medians_the_ranges_and_the_ties() {
        let text = example().markdown();
        for part in [
            "# An example\n\n* Linux\n* bench <echo> & more\n\nHow.\n\n## C = 1\n",
            "| server | microseconds | of epoll | load's core |\n|---|---|---|---|\n",
            "| epoll | 4.00 (3.00 to 5.00) | 1.00 | 90 % |\n",
            "| green | 4.20 (4.10 to 4.30) | 1.05, a tie | 91 % |\n",
            "| threading | 7.00 (6.50 to 8.00) | 1.75 | 92 % |\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn without_a_base_there_is_no_ratio_and_one_round_has_no_range() {
        let mut report = example();
        report.base = None;
        report.cases[0].rows[0].values = vec![2.5];
        let text = report.markdown();
        assert!(text.contains("| epoll | 2.50 | 90 % |\n"), "{text}");
        report.base = Some(Contender::May);
        let text = report.markdown();
        assert!(text.contains("| epoll | 2.50 |  | 90 % |\n"), "{text}");
    }

    #[test]
    fn medians() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[3.0]).to_bits(), 3.0_f64.to_bits());
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5_f64.to_bits());
    }
}
