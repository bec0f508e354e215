//! A strict parser of the text format 0.0.4, written from its specification and not from the code
//! that writes it. It panics on everything that the specification forbids or only tolerates.
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub struct Exposition {
    pub families: Vec<Family>,
}

#[derive(Debug)]
pub struct Family {
    pub name: String,
    pub kind: String,
    pub samples: Vec<Sample>,
}

#[derive(Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

impl Exposition {
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no line feed");
        let mut families: Vec<Family> = Vec::new();
        let mut lines = text.lines();
        let mut names = BTreeSet::new();
        while let Some(line) = lines.next() {
            let Some(help) = line.strip_prefix("# HELP ") else {
                let family = families.last_mut().expect("a family before its samples");
                family.samples.push(sample(line));
                continue;
            };
            let (name, help) = help.split_once(' ').unwrap();
            assert!(!help.is_empty(), "{name} has no help");
            assert!(names.insert(name.to_owned()), "{name} occurs twice");
            let kind = lines.next().unwrap();
            let kind = kind.strip_prefix(&format!("# TYPE {name} ")).unwrap();
            families.push(Family {
                name: name.into(),
                kind: kind.into(),
                samples: Vec::new(),
            });
        }
        families.iter().for_each(Family::check);
        Self { families }
    }

    /// Returns the samples of a name whose labels contain these.
    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Sample> {
        let all = self.families.iter().flat_map(|family| &family.samples);
        all.filter(move |sample| {
            sample.name == name && labels.iter().all(|(l, v)| sample.label(l) == Some(v))
        })
    }

    /// Returns the value of the only sample with exactly these labels.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let mut found = self
            .matching(name, labels)
            .filter(|sample| sample.labels.len() == labels.len());
        match (found.next(), found.next()) {
            (Some(sample), None) => sample.value,
            found => panic!("{name} {labels:?}: {found:?}"),
        }
    }

    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    pub fn values_of(&self, name: &str, label: &str) -> BTreeSet<String> {
        self.matching(name, &[])
            .map(|sample| sample.label(label).unwrap().to_owned())
            .collect()
    }
}

impl Family {
    fn check(&self) {
        let Self {
            name,
            kind,
            samples,
        } = self;
        assert!(is_name(name, ":"), "{name}");
        let unique: BTreeSet<_> = samples
            .iter()
            .map(|sample| format!("{}{:?}", sample.name, sample.labels))
            .collect();
        assert_eq!(unique.len(), samples.len(), "{name} has a series twice");
        match kind.as_str() {
            "counter" => {
                // https://prometheus.io/docs/practices/naming/
                assert!(name.ends_with("_total"), "{name}");
                for sample in samples {
                    assert!(sample.name == *name && sample.value >= 0.0, "{sample:?}");
                }
            }
            "gauge" => {
                assert!(!name.ends_with("_total"), "{name}");
                assert!(samples.iter().all(|sample| sample.name == *name), "{name}");
            }
            "histogram" => self.check_histogram(),
            kind => panic!("{name} has the unknown type {kind}"),
        }
    }

    fn check_histogram(&self) {
        let Self { name, samples, .. } = self;
        let mut series: BTreeMap<String, Vec<&Sample>> = BTreeMap::new();
        for sample in samples {
            let others = sample.labels.iter().filter(|(label, _)| label != "le");
            let key = format!("{:?}", others.collect::<Vec<_>>());
            series.entry(key).or_default().push(sample);
        }
        for samples in series.values() {
            let buckets: Vec<_> = samples
                .iter()
                .filter(|sample| sample.name == format!("{name}_bucket"))
                .map(|sample| (number(sample.label("le").unwrap()), sample.value))
                .collect();
            assert!(buckets.is_sorted(), "{name}: {buckets:?}");
            assert!(buckets.is_sorted_by_key(|(_, count)| *count));
            let last = buckets.last().unwrap();
            let of = |suffix: &str| {
                let full = format!("{name}{suffix}");
                let mut found = samples.iter().filter(|sample| sample.name == full);
                found.next().unwrap().value
            };
            assert_eq!(*last, (f64::INFINITY, of("_count")));
            assert!(of("_sum") >= 0.0);
            assert_eq!(samples.len(), buckets.len() + 2);
        }
    }
}

impl Sample {
    pub fn label(&self, name: &str) -> Option<&str> {
        let mut found = self.labels.iter().filter(|(label, _)| label == name);
        Some(found.next()?.1.as_str())
    }
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect("a value");
    let (name, rest) = line.split_at(end);
    assert!(is_name(name, ":"), "{line}");
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest),
        None => (Vec::new(), rest),
    };
    let value = rest.strip_prefix(' ').expect("one space before the value");
    Sample {
        name: name.into(),
        labels,
        value: number(value),
    }
}

/// Parses the labels between braces. Returns them with the rest of the line.
fn labels(text: &str) -> (Vec<(String, String)>, &str) {
    let (mut all, mut rest): (Vec<(String, String)>, _) = (Vec::new(), text);
    loop {
        let (name, after) = rest.split_once("=\"").expect("a label and its value");
        assert!(is_name(name, "") && !name.starts_with("__"), "{text}");
        assert!(all.iter().all(|(other, _)| other != name), "{text}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => match chars.next().expect("an escaped character").1 {
                    'n' => value.push('\n'),
                    char @ ('\\' | '"') => value.push(char),
                    char => panic!("\\{char} is not an escape: {text}"),
                },
                (_, char) => value.push(char),
            }
        };
        all.push((name.into(), value));
        rest = &after[end + 1..];
        match rest.split_at(1) {
            (",", more) => rest = more,
            ("}", more) => return (all, more),
            other => panic!("{other:?} after a value: {text}"),
        }
    }
}

/// Parses a number as Go's `ParseFloat` does, limited to the documented syntax.
fn number(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        _ => {
            let digits = |char: char| char.is_ascii_digit() || "+-.e".contains(char);
            assert!(text.chars().all(digits), "{text:?} is not a number");
            text.parse().unwrap()
        }
    }
}

fn is_name(text: &str, more: &str) -> bool {
    let first = |char: char| char.is_ascii_alphabetic() || char == '_' || more.contains(char);
    let mut chars = text.chars();
    chars.next().is_some_and(first) && chars.all(|char| first(char) || char.is_ascii_digit())
}
