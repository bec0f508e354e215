//! The values of all options of a program, and their output as a configuration.

use std::collections::BTreeSet;
use std::ffi::OsString;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::settings::flags;

/// All options of a program, in the order of its help.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effective(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    key: String,
    /// The values as typed; empty if the option is unset and has no default.
    values: Vec<OsString>,
    kind: Kind,
    is_default: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Switch,
    One,
    List,
}

impl Effective {
    pub(super) fn of(program: &Command, matches: &ArgMatches) -> Self {
        let entry = |(key, arg): (&str, &clap::Arg)| {
            let id = arg.get_id().as_str();
            let values = matches.get_raw(id).into_iter().flatten();
            Entry {
                key: key.to_owned(),
                values: values.map(ToOwned::to_owned).collect(),
                kind: match arg.get_action() {
                    clap::ArgAction::SetTrue => Kind::Switch,
                    clap::ArgAction::Append => Kind::List,
                    _ => Kind::One,
                },
                is_default: matches.value_source(id) != Some(ValueSource::CommandLine),
            }
        };
        Self(flags(program).map(entry).collect())
    }

    /// Returns the keys whose values differ.
    pub(super) fn changes(&self, other: &Self) -> BTreeSet<&str> {
        let differs = |(old, new): &(&Entry, &Entry)| old.values != new.values;
        let entries = self.0.iter().zip(&other.0);
        entries
            .filter(differs)
            .map(|(old, _)| old.key.as_str())
            .collect()
    }

    /// Takes the values of the selected keys from `other`.
    pub(super) fn adopt(&mut self, other: &Self, mut is_meant: impl FnMut(&str) -> bool) {
        for (old, new) in self.0.iter_mut().zip(&other.0) {
            if is_meant(&old.key) {
                old.clone_from(new);
            }
        }
    }

    /// Returns an equivalent configuration.
    ///
    /// # Errors
    /// Returns an error for a path that is not UTF-8, because TOML cannot contain it.
    pub(crate) fn to_toml(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        for entry in &self.0 {
            let written = entry.values.iter().map(|value| {
                let text = value.to_str().with_context(|| {
                    format!(
                        "--{}: the value is not UTF-8, so a configuration cannot contain it",
                        entry.key
                    )
                })?;
                Ok(match entry.kind {
                    Kind::Switch => text.to_owned(),
                    Kind::One | Kind::List => quoted(text),
                })
            });
            let written = written.collect::<anyhow::Result<Vec<_>>>()?;
            let key = &entry.key;
            let line = match entry.kind {
                _ if written.is_empty() => {
                    out += &format!("# {key} is not set\n");
                    continue;
                }
                Kind::List => format!("{key} = [{}]", written.join(", ")),
                Kind::Switch | Kind::One => format!("{key} = {}", written.concat()),
            };
            // A default is a comment, because an option may require that another option is set.
            out += &match entry.is_default {
                true => format!("# {line} is the default\n"),
                false => format!("{line}\n"),
            };
        }
        Ok(out)
    }
}

/// Returns a number unchanged, and other values as a basic string: TOML 1.0, "String".
fn quoted(text: &str) -> String {
    let is_number = text.parse::<i64>().is_ok_and(|n| n.to_string() == text);
    if is_number {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out += &format!("\\u{:04X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out + "\""
}
