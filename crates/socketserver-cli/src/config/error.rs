//! Errors in a configuration, with their location: `FILE:LINE: KEY: WHY`.

use std::fmt;

use clap::error::{ContextKind, ContextValue};

use super::file::File;
use super::settings::{Setting, Settings};
use crate::escape;

/// An error in a configuration.
#[derive(Debug)]
pub(crate) struct BadConfig {
    file: String,
    line: Option<usize>,
    key: Option<String>,
    why: String,
}

impl BadConfig {
    pub(super) fn of_file(file: &str, why: String) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            key: None,
            why,
        }
    }

    pub(super) fn at(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }

    pub(super) fn on(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }
}

impl fmt::Display for BadConfig {
    /// Writes a single line, regardless of line ends in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {}", escape::printable(key.as_bytes()))?;
        }
        // Messages contain quotes but no backslashes of their own.
        let why = self.why.split_whitespace().collect::<Vec<_>>().join(" ");
        write!(f, ": {}", escape::printable(why.as_bytes()))
    }
}

impl std::error::Error for BadConfig {}

/// Finds the setting that causes an error of clap: the error disappears without the setting, or
/// changes.
pub(super) fn blame<T>(
    file: &File,
    settings: &Settings,
    error: &clap::Error,
    parse: impl Fn(&Settings) -> Result<T, clap::Error>,
) -> BadConfig {
    let fault = BadConfig::of_file(file.name(), reason(error));
    let message = error.to_string();
    let is_at_fault = |setting: &&Setting| {
        let without = settings.without(&setting.key);
        parse(&without)
            .err()
            .is_none_or(|e| e.to_string() != message)
    };
    match settings.iter().find(is_at_fault) {
        Some(setting) => fault.at(line(setting, error)).on(&setting.key),
        None => fault,
    }
}

/// Returns the line of the value itself, in a list.
fn line(setting: &Setting, error: &clap::Error) -> usize {
    let bad = context(error, ContextKind::InvalidValue);
    let value = setting
        .values
        .iter()
        .find(|(text, _)| bad == Some(text.as_str()));
    value.map_or(setting.line, |&(_, line)| line)
}

/// Returns the message of clap without the parts that all messages share.
fn reason(error: &clap::Error) -> String {
    let message = error.to_string();
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let first = message.split("\n\n").next().unwrap_or(message);
    match context(error, ContextKind::InvalidArg) {
        // The error already names the key.
        Some(arg) => first.replace(&format!(" for '{arg}'"), ""),
        None => first.to_owned(),
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}
