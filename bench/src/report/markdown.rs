//! The table, and below it what the load did meanwhile.

use std::fmt::Write as _;

use super::{Cell, Report, Row};
use crate::contenders::Contender;

impl Report {
    /// Whole, with its header.
    pub(crate) fn markdown(&self) -> String {
        let mut out = format!("# {}\n\n", self.subject.title);
        for fact in &self.header {
            let _ = writeln!(out, "* {fact}");
        }
        let _ = write!(out, "\n{}", self.body());
        out
    }

    /// Without title and header.
    pub(crate) fn body(&self) -> String {
        let subject = &self.subject;
        let unit = capitalized(&subject.unit);
        let mut out = format!("{unit}. {}\n\n{}", subject.method, self.values());
        if !subject.asides.is_empty() {
            let names: Vec<_> = subject.asides.iter().map(|aside| aside.name).collect();
            let _ = write!(out, "\nBesides: {}.\n\n{}", names.join("; "), self.asides());
        }
        let mut notes = self.failures();
        notes
            .iter_mut()
            .for_each(|note| note.insert_str(0, "Failed: "));
        let skipped = self.skipped.iter();
        notes.extend(skipped.map(|(contender, why)| format!("Skipped: {contender}, as {why}")));
        if !notes.is_empty() {
            let _ = writeln!(out, "\n* {}", notes.join("\n* "));
        }
        out
    }

    fn values(&self) -> String {
        let bases: Vec<_> = self.rows.iter().filter(|row| self.is_base(row)).collect();
        let mut heads = vec!["server".to_owned()];
        for (_, _, column) in self.columns() {
            heads.push(column.name.clone());
            heads.extend(bases.iter().map(|base| format!("of {}", base.contender)));
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
                for base in &bases {
                    let of_base = base.figures(part, column);
                    cells.push(match (&figures, &of_base) {
                        _ if base.contender == row.contender => "".into(),
                        (Some(own), Some(base)) => own.compared_with(base),
                        _ => "".into(),
                    });
                }
            }
            cells
        });
        table(&heads, rows)
    }

    fn is_base(&self, row: &Row) -> bool {
        let bases: &[Contender] = &self.subject.bases;
        bases.contains(&row.contender)
    }

    fn asides(&self) -> String {
        let parts = self.subject.parts.iter();
        let mut heads = vec!["server".to_owned()];
        heads.extend(parts.map(|part| part.name.clone()));
        let rows = self.rows.iter().map(|row| {
            let cells = row.cells.iter().map(|cell| {
                let Cell::Measured(samples) = cell else {
                    return String::new();
                };
                let asides = self
                    .subject
                    .asides
                    .iter()
                    .enumerate()
                    .map(|(index, aside)| {
                        let told = samples.iter().filter_map(|sample| sample.asides.get(index));
                        (aside.show)((aside.fold)(&told.copied().collect::<Vec<_>>()))
                    });
                asides.collect::<Vec<_>>().join("; ")
            });
            std::iter::once(row.contender.name()).chain(cells).collect()
        });
        table(&heads, rows)
    }
}

fn table(heads: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut out = format!(
        "{}\n|---|{}\n",
        line(heads),
        "---:|".repeat(heads.len() - 1)
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
    use crate::report::tests::example;

    #[test]
    fn a_table_has_the_medians_the_ranges_the_ties_and_the_gaps() {
        let text = example().markdown();
        for part in [
            "# An example\n\n* Linux\n* bench <echo> & more\n\nMicroseconds. How.\n\n",
            "| server | C = 1 | of epoll | C = 50 | of epoll |\n|---|---:|---:|---:|---:|\n",
            "| epoll | 4.00 (3.00 to 5.00) |  | 2.00 (2.00 to 2.00) |  |\n",
            "| green | 4.20 (4.10 to 4.30) | 1.05, a tie | 3.00 (3.00 to 3.00) | 1.50 |\n",
            "| threading | 7.00 (6.50 to 8.00) | 1.75 |  |  |\n",
            "| may | failed |  | 2.50 | 1.25 |\n",
            "\nBesides: load's core.\n\n| server | C = 1 | C = 50 |\n|---|---:|---:|\n",
            "| green | 94 % | 93 % |\n| threading | 97 % |  |\n| may |  | 92 % |\n",
            "\n* Failed: may, C = 1: it has ended\n* Skipped: python-gevent, as no gevent\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn a_base_that_is_not_there_is_no_column() {
        let mut report = example();
        report.rows.remove(0);
        let text = report.markdown();
        assert!(text.contains("| server | C = 1 | C = 50 |\n"), "{text}");
    }
}
