//! An encoder of the Prometheus text format, version 0.0.4.

use std::fmt::{self, Write};

/// The media type of the format.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// An encoder of metric families with their samples.
#[derive(Default)]
pub(super) struct Encoder(String);

impl Encoder {
    /// Begins a family. All samples of the family must follow before the next family, because the
    /// format requires "all lines for a given metric" as "one single group".
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        debug_assert!(kind != Kind::Counter || name.ends_with("_total"), "{name}");
        let _ = writeln!(self.0, "# HELP {name} {}", Escaped(help, false));
        let _ = writeln!(self.0, "# TYPE {name} {}", kind.name());
        Family { text: self, name }
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

pub(super) struct Family<'a> {
    text: &'a mut Encoder,
    name: &'static str,
}

impl Family<'_> {
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.suffixed("", labels, value);
    }

    /// Writes a sample whose name has a suffix, as histograms need.
    pub(super) fn suffixed(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        value: impl fmt::Display,
    ) {
        let out = &mut self.text.0;
        let _ = write!(out, "{}{suffix}", self.name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(out, "{before}{label}=\"{}\"", Escaped(value, true));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(out, "{end} {value}");
    }
}

/// A floating-point value.
pub(super) struct Float(pub(super) f64);

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == f64::INFINITY {
            f.write_str("+Inf")
        } else {
            self.0.fmt(f)
        }
    }
}

/// A text with backslashes and line feeds escaped. Quotes are escaped in label values only (the
/// flag is true).
struct Escaped<'a>(&'a str, bool);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '"' if self.1 => f.write_str("\\\"")?,
                char => f.write_char(char)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_backslashes_and_line_feeds_are_escaped() {
        let mut text = Encoder::default();
        let mut family = text.family("a_total", Kind::Counter, "back\\slash \"and\"\nline");
        family.sample(&[("x", "\"\\\n\u{e9}"), ("y", "")], 1);
        family.sample(&[], Float(f64::INFINITY));
        family.sample(&[], Float(0.001));
        assert_eq!(
            text.finish(),
            "# HELP a_total back\\\\slash \"and\"\\nline\n\
             # TYPE a_total counter\n\
             a_total{x=\"\\\"\\\\\\n\u{e9}\",y=\"\"} 1\n\
             a_total +Inf\n\
             a_total 0.001\n"
        );
    }
}
