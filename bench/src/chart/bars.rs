//! Bar charts: a bar for each median, and a whisker from the lowest to the highest value.

use super::{Drawing, LINE, MARGIN, Scale, colour};
use crate::contenders::Contender;
use crate::report::{Figures, Report};

// In pixels: the left and right end of the bars. Names are to the left, values to the right.
const BARS: (f64, f64) = (160.0, 640.0);
const ROW: f64 = 24.0;
const BAR: f64 = 14.0;

pub(super) fn draw(drawing: &mut Drawing, report: &Report) {
    for (part, index, column) in report.columns() {
        let rows: Vec<_> = report
            .rows
            .iter()
            .filter_map(|row| Some((row.contender, row.figures(part, index)?)))
            .collect();
        drawing.group(&column.name, &rows);
    }
}

impl Drawing {
    fn group(&mut self, name: &str, rows: &[(Contender, Figures)]) {
        let highest = rows.iter().map(|(_, figures)| figures.range().1);
        let scale = Scale::new(highest.fold(0.0, f64::max));
        self.y += LINE;
        self.text(MARGIN, "case", name);
        self.y += 10.0;
        #[expect(clippy::cast_precision_loss, reason = "a dozen rows")]
        let bottom = self.y + ROW * rows.len() as f64;
        for tick in scale.ticks() {
            let x = scale.position(BARS, tick);
            self.line((x, self.y), (x, bottom + 4.0), "#dddddd");
        }
        for (contender, figures) in rows {
            self.bar(*contender, figures, &scale);
        }
        self.y = bottom + LINE;
        for tick in scale.ticks() {
            self.text(scale.position(BARS, tick), "tick", &scale.label(tick));
        }
    }

    fn bar(&mut self, contender: Contender, figures: &Figures, scale: &Scale) {
        let middle = self.y + ROW / 2.0;
        let ((low, high), x) = (figures.range(), |value| scale.position(BARS, value));
        let length = x(figures.median()) - BARS.0;
        let corner = (BARS.0, middle - BAR / 2.0);
        self.rect(corner, (length, BAR), colour(contender.group()));
        if low < high {
            self.line((x(low), middle), (x(high), middle), "#222222");
            for end in [x(low), x(high)] {
                self.line((end, middle - 4.0), (end, middle + 4.0), "#222222");
            }
        }
        self.y = middle + 4.0;
        self.text(BARS.0 - 8.0, "name", &contender.name());
        self.text(BARS.1 + 8.0, "value", &figures.summary());
        self.y = middle + ROW / 2.0;
    }
}
