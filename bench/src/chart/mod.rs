//! Charts of a report, as SVG: bars for comparisons, lines for growth.

mod bars;
mod lines;

use std::fmt::Write as _;

use crate::contenders::Group;
use crate::report::Report;

// In pixels.
const WIDTH: f64 = 860.0;
const MARGIN: f64 = 20.0;
const LINE: f64 = 16.0;

/// Draws the chart, as SVG 1.1.
pub(crate) fn draw(report: &Report) -> String {
    let mut drawing = Drawing {
        elements: String::new(),
        y: MARGIN + 4.0,
    };
    drawing.text(MARGIN, "title", &report.description.title);
    drawing.y += LINE + 4.0;
    for fact in &report.header {
        drawing.text(MARGIN, "fact", fact);
        drawing.y += LINE;
    }
    drawing.legend(report);
    if report
        .columns()
        .all(|(_, _, column)| column.point.is_some())
    {
        lines::draw(&mut drawing, report);
    } else {
        bars::draw(&mut drawing, report);
    }
    drawing.y += MARGIN;
    drawing.text(WIDTH / 2.0, "unit", &report.description.unit);
    let height = drawing.y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\">\n<style>{STYLE}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n{}</svg>\n",
        drawing.elements
    )
}

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#222222}\
    .title{font-size:16px;font-weight:bold}.fact{font-size:11px;fill:#666666}\
    .case{font-weight:bold}.name{text-anchor:end}.tick,.unit{font-size:11px;fill:#666666;\
    text-anchor:middle}.value{font-size:11px}";

struct Drawing {
    elements: String,
    /// The baseline of the next element.
    y: f64,
}

impl Drawing {
    fn legend(&mut self, report: &Report) {
        self.y += 6.0;
        let mut x = MARGIN;
        for group in Group::ALL {
            if report.rows.iter().any(|row| row.contender.group() == group) {
                self.rect((x, self.y - 10.0), (12.0, 12.0), colour(group));
                self.text(x + 17.0, "fact", group.name());
                x += 150.0;
            }
        }
        self.y += LINE;
    }

    fn text(&mut self, x: f64, class: &str, text: &str) {
        let (y, text) = (self.y, escaped(text));
        self.add(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"
        ));
    }

    fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str) {
        self.add(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             fill=\"{fill}\"/>"
        ));
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), stroke: &str) {
        self.add(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{stroke}\"/>"
        ));
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a `String` cannot fail.
        let _ = writeln!(self.elements, "{element}");
    }
}

fn colour(group: Group) -> &'static str {
    match group {
        Group::BareLoop => "#9aa0a6",
        Group::ThisProject => "#2a78d6",
        Group::Others => "#e08a2e",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// An axis from zero to a round number.
struct Scale {
    step: f64,
    end: f64,
}

impl Scale {
    /// Creates an axis with four to ten steps of 1, 2 or 5 times a power of ten.
    fn new(highest: f64) -> Self {
        let highest = if highest > 0.0 { highest } else { 1.0 };
        let rough = highest / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [5.0, 2.0, 1.0].map(|factor| factor * power);
        let step = step
            .into_iter()
            .find(|step| *step <= rough)
            .unwrap_or(power);
        let end = (highest / step).ceil() * step;
        Self { step, end }
    }

    /// Returns the position of a value between two coordinates.
    fn position(&self, (begin, end): (f64, f64), value: f64) -> f64 {
        begin + value / self.end * (end - begin)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let Self { step, end } = *self;
        let ticks = (0_u32..).map(move |n| f64::from(n) * step);
        ticks.take_while(move |tick| *tick < end + step / 2.0)
    }

    fn label(&self, tick: f64) -> String {
        let decimals = (1..4).find(|n| self.step >= 10_f64.powi(1 - n));
        let decimals = decimals.map_or(3, |n: i32| n.unsigned_abs() as usize - 1);
        format!("{tick:.decimals$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    /// Returns true if each element that begins also ends, in the right order.
    fn is_well_formed(text: &str) -> bool {
        let mut open = Vec::new();
        for tag in text.split('<').skip(1) {
            let Some((tag, _)) = tag.split_once('>') else {
                return false;
            };
            let name = tag.split([' ', '/']).next().unwrap_or_default();
            if let Some(name) = tag.strip_prefix('/') {
                if open.pop() != Some(name) {
                    return false;
                }
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        open.is_empty()
    }

    fn without_points() -> Report {
        let mut report = example();
        for part in &mut report.description.parts {
            part.columns[0].point = None;
        }
        report
    }

    #[test]
    fn charts_are_well_formed_and_name_every_contender() {
        for report in [example(), without_points()] {
            let chart = draw(&report);
            assert!(is_well_formed(&chart), "{chart}");
            for part in ["epoll", "green", "threading", "may"] {
                assert!(chart.contains(&format!(">{part}")), "{part}");
            }
            assert!(chart.contains("bench &lt;echo&gt; &amp; more"));
            assert!(!chart.contains("NaN") && !chart.contains("inf"));
        }
        assert!(!is_well_formed("<svg><text></svg>"));
    }

    #[test]
    fn bar_chart_has_a_bar_for_each_measurement() {
        let chart = draw(&without_points());
        for part in ["4.20 (4.10 to 4.30)", "C = 1", "C = 50"] {
            assert!(chart.contains(&format!(">{part}</text>")), "{part}");
        }
        // The background, three groups in the legend, two times three bars.
        assert_eq!(chart.matches("<rect").count(), 1 + 3 + 3 + 3);
    }

    #[test]
    fn line_chart_has_a_point_for_each_measurement() {
        let chart = draw(&example());
        assert_eq!(chart.matches("<circle").count(), 6);
        // A contender with one point has no line.
        assert_eq!(chart.matches("<polyline").count(), 2);
        assert!(chart.contains(">all active</text>"), "{chart}");
    }

    #[test]
    fn lengths_are_proportional_to_values() {
        let scale = Scale::new(8.0);
        let length = |value| scale.position((100.0, 200.0), value) - 100.0;
        assert!((length(6.0) - 2.0 * length(3.0)).abs() < 1e-9);
        assert!(length(8.0) <= 100.0);
    }

    #[test]
    fn axes_have_round_steps() {
        for (highest, expected) in [
            (8.0, "0 2 4 6 8"),
            (0.7, "0.0 0.1 0.2 0.3 0.4 0.5 0.6 0.7"),
            (33.0, "0 5 10 15 20 25 30 35"),
            (0.0, "0.0 0.2 0.4 0.6 0.8 1.0"),
            (0.09, "0.00 0.02 0.04 0.06 0.08 0.10"),
        ] {
            let scale = Scale::new(highest);
            let labels: Vec<_> = scale.ticks().map(|tick| scale.label(tick)).collect();
            assert_eq!(labels.join(" "), expected, "{highest}");
        }
    }
}
