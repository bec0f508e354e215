//! A report as a picture: a bar to each median, and a whisker from the lowest to the highest.

use std::fmt::Write as _;

use crate::contenders::Kin;
use crate::report::{Case, Report, Row};

// In pixels.
const WIDTH: f64 = 860.0;
const MARGIN: f64 = 20.0;
/// Where bars begin and end. Names are before them, and values after.
const BARS: (f64, f64) = (160.0, 640.0);
const LINE: f64 = 16.0;
const ROW: f64 = 24.0;
const BAR: f64 = 14.0;

/// The picture, as SVG 1.1.
pub(crate) fn draw(report: &Report) -> String {
    let mut drawing = Drawing {
        elements: String::new(),
        y: MARGIN + 4.0,
    };
    drawing.text(MARGIN, "title", &report.title);
    drawing.y += LINE + 4.0;
    for fact in &report.header {
        drawing.text(MARGIN, "fact", fact);
        drawing.y += LINE;
    }
    drawing.legend(report);
    for case in &report.cases {
        drawing.case(case);
    }
    drawing.y += MARGIN;
    drawing.text((BARS.0 + BARS.1) / 2.0, "unit", &report.unit);
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
    /// The baseline of what comes next.
    y: f64,
}

impl Drawing {
    fn legend(&mut self, report: &Report) {
        self.y += 6.0;
        let mut x = MARGIN;
        for kin in Kin::ALL {
            let rows = || report.cases.iter().flat_map(|case| &case.rows);
            if rows().any(|row| row.contender.kin() == kin) {
                self.rect((x, self.y - 10.0), (12.0, 12.0), colour(kin));
                self.text(x + 17.0, "fact", kin.name());
                x += 150.0;
            }
        }
        self.y += LINE;
    }

    fn case(&mut self, case: &Case) {
        let highest = case.rows.iter().map(|row| row.range().1);
        let scale = Scale::up_to(highest.fold(0.0, f64::max));
        self.y += LINE;
        self.text(MARGIN, "case", &case.name);
        self.y += 10.0;
        let bottom = self.y + rows_height(case);
        for tick in scale.ticks() {
            let x = scale.x(tick);
            self.line((x, self.y), (x, bottom + 4.0), "#dddddd");
        }
        for row in &case.rows {
            self.row(row, &scale);
        }
        self.y = bottom + LINE;
        for tick in scale.ticks() {
            self.text(scale.x(tick), "tick", &scale.label(tick));
        }
    }

    fn row(&mut self, row: &Row, scale: &Scale) {
        let middle = self.y + ROW / 2.0;
        let ((low, high), x) = (row.range(), |value| scale.x(value));
        let length = x(row.median()) - BARS.0;
        let corner = (BARS.0, middle - BAR / 2.0);
        self.rect(corner, (length, BAR), colour(row.contender.kin()));
        if low < high {
            self.line((x(low), middle), (x(high), middle), "#222222");
            for end in [x(low), x(high)] {
                self.line((end, middle - 4.0), (end, middle + 4.0), "#222222");
            }
        }
        self.y = middle + 4.0;
        self.text(BARS.0 - 8.0, "name", &row.contender.name());
        self.text(BARS.1 + 8.0, "value", &row.summary());
        self.y = middle + ROW / 2.0;
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
        // A string takes whatever is written to it.
        let _ = writeln!(self.elements, "{element}");
    }
}

#[expect(clippy::cast_precision_loss, reason = "a dozen rows")]
fn rows_height(case: &Case) -> f64 {
    ROW * case.rows.len() as f64
}

fn colour(kin: Kin) -> &'static str {
    match kin {
        Kin::Floor => "#9aa0a6",
        Kin::Ours => "#2a78d6",
        Kin::Others => "#e08a2e",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// From zero to a round number.
struct Scale {
    step: f64,
    end: f64,
}

impl Scale {
    /// With four to ten steps of 1, 2 or 5 times a power of ten.
    fn up_to(highest: f64) -> Self {
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

    fn x(&self, value: f64) -> f64 {
        BARS.0 + value / self.end * (BARS.1 - BARS.0)
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

    /// Whether each element that begins also ends, in the right order.
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

    #[test]
    fn a_picture_is_well_formed_and_has_everybody_in_it() {
        let picture = draw(&example());
        assert!(is_well_formed(&picture), "{picture}");
        for part in [
            "epoll",
            "green",
            "threading",
            "4.20 (4.10 to 4.30)",
            "C = 1",
        ] {
            assert!(picture.contains(&format!(">{part}</text>")), "{part}");
        }
        assert!(picture.contains("bench &lt;echo&gt; &amp; more"));
        // Background, three bars, and a legend of two kinds.
        assert_eq!(picture.matches("<rect").count(), 1 + 3 + 2);
        assert!(!picture.contains("NaN"));
        assert!(!is_well_formed("<svg><text></svg>"));
    }

    #[test]
    fn lengths_are_in_proportion() {
        let scale = Scale::up_to(8.0);
        let length = |value| scale.x(value) - BARS.0;
        assert!((length(6.0) - 2.0 * length(3.0)).abs() < 1e-9);
        assert!(scale.x(8.0) <= BARS.1);
    }

    #[test]
    fn scales_are_round() {
        for (highest, expected) in [
            (8.0, "0 2 4 6 8"),
            (0.7, "0.0 0.1 0.2 0.3 0.4 0.5 0.6 0.7"),
            (33.0, "0 5 10 15 20 25 30 35"),
            (0.0, "0.0 0.2 0.4 0.6 0.8 1.0"),
            (0.09, "0.00 0.02 0.04 0.06 0.08 0.10"),
        ] {
            let scale = Scale::up_to(highest);
            let labels: Vec<_> = scale.ticks().map(|tick| scale.label(tick)).collect();
            assert_eq!(labels.join(" "), expected, "{highest}");
        }
    }
}
