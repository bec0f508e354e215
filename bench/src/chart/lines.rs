//! Line charts: a line through the medians of each contender, over a logarithmic x axis, with the
//! contender's name at its end.

use super::{Drawing, LINE, MARGIN, Scale, colour};
use crate::contenders::Contender;
use crate::report::{Point, Report};

// In pixels.
const PLOT: (f64, f64) = (70.0, 700.0);
const HEIGHT: f64 = 320.0;
/// Minimum distance between two names.
const NAME: f64 = 13.0;

pub(super) fn draw(drawing: &mut Drawing, report: &Report) {
    let points: Vec<_> = report
        .columns()
        .filter_map(|(part, index, column)| Some((part, index, column.point.as_ref()?)))
        .collect();
    let mut lines: Vec<&str> = Vec::new();
    for (_, _, point) in &points {
        if !lines.contains(&point.line.as_str()) {
            lines.push(&point.line);
        }
    }
    for line in lines {
        let on_line = points.iter().filter(|(_, _, point)| point.line == line);
        drawing.plot(line, report, &on_line.copied().collect::<Vec<_>>());
    }
}

/// The medians of one contender, from left to right.
struct Line {
    contender: Contender,
    points: Vec<(f64, f64)>,
}

impl Drawing {
    fn plot(&mut self, name: &str, report: &Report, points: &[(usize, usize, &Point)]) {
        let medians = report.rows.iter().map(|row| Line {
            contender: row.contender,
            points: points
                .iter()
                .filter_map(|(part, index, point)| {
                    Some((point.x, row.figures(*part, *index)?.median()))
                })
                .collect(),
        });
        let lines: Vec<_> = medians.filter(|line| !line.points.is_empty()).collect();
        let values = lines.iter().flat_map(|line| &line.points);
        let scale = Scale::new(values.map(|(_, y)| *y).fold(0.0, f64::max));
        let xs = points.iter().map(|(_, _, point)| point.x);
        let low = xs.clone().fold(f64::INFINITY, f64::min).ln();
        let high = xs.clone().fold(0.0, f64::max).ln().max(low + 1e-9);
        let x = |value: f64| PLOT.0 + (value.ln() - low) / (high - low) * (PLOT.1 - PLOT.0);
        self.y += LINE;
        self.text(MARGIN, "case", name);
        let (top, bottom) = (self.y + 12.0, self.y + 12.0 + HEIGHT);
        let y = |value: f64| scale.position((bottom, top), value);
        for tick in scale.ticks() {
            self.line((PLOT.0, y(tick)), (PLOT.1, y(tick)), "#dddddd");
            self.y = y(tick) + 4.0;
            self.text(PLOT.0 - 8.0, "name", &scale.label(tick));
        }
        self.y = bottom + LINE;
        for value in xs {
            self.text(x(value), "tick", &value.to_string());
        }
        let mut names = Vec::new();
        for Line { contender, points } in &lines {
            let at: Vec<_> = points
                .iter()
                .map(|(value, median)| (x(*value), y(*median)))
                .collect();
            let stroke = colour(contender.group());
            for (x, y) in &at {
                self.add(format_args!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{stroke}\"/>"
                ));
            }
            if at.len() > 1 {
                let path: Vec<_> = at.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                self.add(format_args!(
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{stroke}\"/>",
                    path.join(" ")
                ));
            }
            if let (Some(end), Some((_, median))) = (at.last(), points.last()) {
                names.push((*end, format!("{contender} {median:.2}")));
            }
        }
        self.names(names, bottom);
        self.y = bottom + LINE + 4.0;
    }

    /// Draws names beside the ends of lines, moved up or down where they would overlap.
    fn names(&mut self, mut names: Vec<((f64, f64), String)>, bottom: f64) {
        // Sort names of the same x position from the top down.
        names.sort_by(|(left, _), (right, _)| {
            left.0.total_cmp(&right.0).then(left.1.total_cmp(&right.1))
        });
        for column in names.chunk_by(|((left, _), _), ((right, _), _)| (left - right).abs() < 1.0) {
            let positions: Vec<_> = column.iter().map(|((_, y), _)| *y).collect();
            for (((x, _), name), y) in column.iter().zip(spread(&positions, bottom)) {
                self.y = y + 4.0;
                self.text(x + 8.0, "value", name);
            }
        }
    }
}

/// Spreads label positions, given from the top down: at least one line apart, none below the
/// bottom, and moved only where necessary.
fn spread(positions: &[f64], bottom: f64) -> Vec<f64> {
    let mut positions = positions.to_vec();
    for index in 1..positions.len() {
        positions[index] = positions[index].max(positions[index - 1] + NAME);
    }
    let mut limit = bottom;
    for position in positions.iter_mut().rev() {
        *position = position.min(limit);
        limit = *position - NAME;
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_overlap() {
        let same = |positions: Vec<f64>, expected: &[f64]| {
            let close = |(left, right): (&f64, &f64)| (left - right).abs() < 1e-9;
            assert!(positions.iter().zip(expected).all(close), "{positions:?}");
        };
        same(spread(&[10.0, 50.0], 100.0), &[10.0, 50.0]);
        same(spread(&[10.0, 11.0, 12.0], 100.0), &[10.0, 23.0, 36.0]);
        same(spread(&[98.0, 99.0], 100.0), &[87.0, 100.0]);
    }
}
