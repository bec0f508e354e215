//! The report as Markdown: the table of values, and below it the table of notes.

use std::fmt::Write as _;

use super::{Cell, Report, Row};
use crate::contenders::Contender;

impl Report {
    /// Returns the whole report, with its title and header.
    pub(crate) fn markdown(&self) -> String {
        let mut out = format!("# {}\n\n", self.description.title);
        for fact in &self.header {
            let _ = writeln!(out, "* {fact}");
        }
        let _ = write!(out, "\n{}", self.body());
        out
    }

    /// Returns the report without title and header.
    pub(crate) fn body(&self) -> String {
        let description = &self.description;
        let unit = capitalized(&description.unit);
        let mut out = format!("{unit}. {}\n\n{}", description.method, self.values());
        if !description.notes.is_empty() {
            let names: Vec<_> = description.notes.iter().map(|note| note.name).collect();
            let _ = write!(
                out,
                "\nAlso measured: {}.\n\n{}",
                names.join("; "),
                self.notes()
            );
        }
        let mut remarks = self.failures();
        remarks
            .iter_mut()
            .for_each(|remark| remark.insert_str(0, "Failed: "));
        let skipped = self.skipped.iter();
        remarks.extend(skipped.map(|(contender, why)| format!("Skipped: {contender}: {why}")));
        if !remarks.is_empty() {
            let _ = writeln!(out, "\n* {}", remarks.join("\n* "));
        }
        out
    }

    fn values(&self) -> String {
        let baselines: Vec<_> = self
            .rows
            .iter()
            .filter(|row| self.is_baseline(row))
            .collect();
        let mut headings = vec!["server".to_owned()];
        for (_, _, column) in self.columns() {
            headings.push(column.name.clone());
            headings.extend(
                baselines
                    .iter()
                    .map(|baseline| format!("of {}", baseline.contender)),
            );
        }
        let rows = self.rows.iter().map(|row| {
            let mut cells = vec![row.contender.name()];
            for (part, column, _) in self.columns() {
                let figures = row.figures(part, column);
                cells.push(match (&figures, &row.cells[part]) {
                    (Some(figures), _) => figures.summary(),
                    (None, Cell::Failed(_)) => "failed".into(),
                    (None, _) => "".into(),
                });
                for baseline in &baselines {
                    let baseline_figures = baseline.figures(part, column);
                    cells.push(match (&figures, &baseline_figures) {
                        _ if baseline.contender == row.contender => "".into(),
                        // A ratio to zero has no meaning.
                        (Some(own), Some(baseline)) if baseline.median() > 0.0 => {
                            own.compared_with(baseline)
                        }
                        _ => "".into(),
                    });
                }
            }
            cells
        });
        table(&headings, rows)
    }

    fn is_baseline(&self, row: &Row) -> bool {
        let baselines: &[Contender] = &self.description.baselines;
        baselines.contains(&row.contender)
    }

    fn notes(&self) -> String {
        let parts = self.description.parts.iter();
        let mut headings = vec!["server".to_owned()];
        headings.extend(parts.map(|part| part.name.clone()));
        let rows = self.rows.iter().map(|row| {
            let cells = row.cells.iter().map(|cell| {
                let Cell::Measured(samples) = cell else {
                    return String::new();
                };
                let notes = self
                    .description
                    .notes
                    .iter()
                    .enumerate()
                    .map(|(index, note)| {
                        let figures = samples.iter().filter_map(|sample| sample.notes.get(index));
                        (note.format)((note.aggregate)(&figures.copied().collect::<Vec<_>>()))
                    });
                notes.collect::<Vec<_>>().join("; ")
            });
            std::iter::once(row.contender.name()).chain(cells).collect()
        });
        table(&headings, rows)
    }
}

fn table(headings: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut out = format!(
        "{}\n|---|{}\n",
        line(headings),
        "---:|".repeat(headings.len() - 1)
    );
    for row in rows {
        let _ = writeln!(out, "{}", line(&row));
    }
    out
}

fn line(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use crate::report::Cell;
    use crate::report::tests::example;

    #[test]
    fn table_shows_medians_ranges_ties_and_gaps() {
        let text = example().markdown();
        for part in [
            "# An example\n\n* Linux\n* bench <echo> & more\n\nMicroseconds. How.\n\n",
            "| server | C = 1 | of epoll | C = 50 | of epoll |\n|---|---:|---:|---:|---:|\n",
            "| epoll | 4.00 (3.00 to 5.00) |  | 2.00 (2.00 to 2.00) |  |\n",
            "| green | 4.20 (4.10 to 4.30) | 1.05, a tie | 3.00 (3.00 to 3.00) | 1.50 |\n",
            "| threading | 7.00 (6.50 to 8.00) | 1.75 |  |  |\n",
            "| may | failed |  | 2.50 | 1.25 |\n",
            "\nAlso measured: load's core.\n\n| server | C = 1 | C = 50 |\n|---|---:|---:|\n",
            "| green | 94 % | 93 % |\n| threading | 97 % |  |\n| may |  | 92 % |\n",
            "\n* Failed: may, C = 1: the process ended\n* Skipped: python-gevent: no gevent\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn missing_baseline_has_no_column() {
        let mut report = example();
        report.rows.remove(0);
        let text = report.markdown();
        assert!(text.contains("| server | C = 1 | C = 50 |\n"), "{text}");
    }

    #[test]
    fn baseline_of_zero_has_no_ratios() {
        let mut report = example();
        for cell in &mut report.rows[0].cells {
            if let Cell::Measured(samples) = cell {
                samples.iter_mut().for_each(|sample| sample.values[0] = 0.0);
            }
        }
        let text = report.markdown();
        assert!(!text.contains("inf") && !text.contains("NaN"), "{text}");
        assert!(
            text.contains("| green | 4.20 (4.10 to 4.30) |  | 3.00"),
            "{text}"
        );
    }
}
