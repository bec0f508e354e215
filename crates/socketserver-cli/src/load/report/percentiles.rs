//! All percentiles in the format of the HdrHistogram tools (.hgrm).

use std::io::{self, BufWriter, Write};

use hdrhistogram::Histogram;

/// The number of lines for each halving of the distance to 100 %.
const TICKS: u32 = 5;

/// Writes the percentiles in milliseconds, the unit of the plotting tools.
pub(in super::super) fn write(to: &mut impl Write, histogram: &Histogram<u64>) -> io::Result<()> {
    let mut to = BufWriter::new(to);
    writeln!(
        to,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS) {
        total += step.count_since_last_iteration();
        let quantile = step.quantile_iterated_to();
        let value = millis(step.value_iterated_to());
        if quantile < 1.0 {
            let left = 1.0 / (1.0 - quantile);
            writeln!(
                to,
                "{value:>12.6} {quantile:>14.12} {total:>10} {left:>14.2}"
            )?;
        } else {
            writeln!(to, "{value:>12.6} {quantile:>14.12} {total:>10}")?;
        }
    }
    writeln!(
        to,
        "#[Mean    = {:>12.6}, StdDeviation   = {:>12.6}]",
        histogram.mean() / 1e6,
        histogram.stdev() / 1e6
    )?;
    writeln!(
        to,
        "#[Max     = {:>12.6}, Total count    = {:>12}]",
        millis(histogram.max()),
        histogram.len()
    )?;
    to.flush()
}

#[expect(clippy::cast_precision_loss, reason = "three digits are right")]
fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}
