//! The settings of a configuration file, as options of a program: each key is a long flag.
//!
//! Keys at the top level apply to the program that is started. A table with the name of a program
//! applies to that program only, and takes precedence. Tables of other programs are checked for
//! wrong keys as well.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::BadConfig;
use super::file::File;

/// The options that a file cannot contain.
const COMMAND_LINE_ONLY: [&str; 4] = ["config", "check-config", "help", "version"];

/// The minimum similarity of a suggested name; clap uses the same number.
const ALIKE: f64 = 0.7;

/// A key and its value, as it would be typed.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) line: usize,
    /// The values with their lines.
    pub(super) values: Vec<(String, usize)>,
    is_switch: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Settings(Vec<Setting>);

/// Returns the server program with this name; clients have no configuration. `command` must be
/// built.
pub(super) fn program<'c>(command: &'c Command, name: &str) -> Option<&'c Command> {
    programs(command).find(|program| program.get_name() == name)
}

pub(super) fn programs(command: &Command) -> impl Iterator<Item = &Command> {
    let has_config =
        |program: &&Command| program.get_arguments().any(|arg| arg.get_id() == "config");
    command.get_subcommands().filter(has_config)
}

/// Returns the flags that are keys.
pub(super) fn flags(program: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    program
        .get_arguments()
        .filter_map(|arg| Some((arg.get_long()?, arg)))
        .filter(|(name, _)| !COMMAND_LINE_ONLY.contains(name))
}

fn flag<'c>(program: &'c Command, key: &str) -> Option<&'c Arg> {
    let (_, arg) = flags(program).find(|(name, _)| *name == key)?;
    Some(arg)
}

impl Settings {
    /// Returns all settings of a file for a program. `command` must be built.
    pub(super) fn of(file: &File, command: &Command, name: &str) -> Result<Self, BadConfig> {
        let reader = Reader { file, command };
        let document = file.parse()?;
        let mut all = Self(Vec::new());
        let mut own = Self(Vec::new());
        for (key, value) in document.get_ref() {
            match value.get_ref() {
                DeValue::Table(table) if !reader.is_flag(name, key.get_ref()) => {
                    let settings = reader.table(key, table)?;
                    if key.get_ref() == name {
                        own = settings;
                    }
                }
                _ => all.0.push(reader.setting(name, key, value)?),
            }
        }
        all.retain(|key| own.iter().all(|setting| setting.key != key));
        all.0.append(&mut own.0);
        Ok(all)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.0.iter()
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.0.retain(|setting| keep(&setting.key));
    }

    pub(super) fn without(&self, key: &str) -> Self {
        let mut rest = self.clone();
        rest.retain(|other| other != key);
        rest
    }

    /// Returns the settings as command-line arguments.
    pub(super) fn as_args(&self) -> Vec<OsString> {
        let typed = |setting: &Setting| -> Vec<OsString> {
            let (key, values) = (&setting.key, setting.values.iter());
            match setting.is_switch {
                true => values.map(|_| format!("--{key}").into()).collect(),
                false => values
                    .map(|(text, _)| format!("--{key}={text}").into())
                    .collect(),
            }
        };
        self.0.iter().flat_map(typed).collect()
    }
}

/// A reader that knows the location of each setting.
struct Reader<'f> {
    file: &'f File,
    command: &'f Command,
}

impl Reader<'_> {
    fn table(
        &self,
        name: &Spanned<impl AsRef<str>>,
        table: &DeTable<'_>,
    ) -> Result<Settings, BadConfig> {
        let program = name.get_ref().as_ref();
        if self::program(self.command, program).is_none() {
            let names = programs(self.command).map(Command::get_name);
            let why = match self.command.find_subcommand(program) {
                Some(_) => "is a client, and has no configuration".to_owned(),
                None => match nearest(program, names) {
                    Some(name) => format!("no program is called so; did you mean {name}?"),
                    None => "no program is called so, and only programs have tables".to_owned(),
                },
            };
            return Err(self.fault(name.span().start, program, why));
        }
        let settings = table
            .iter()
            .map(|(key, value)| self.setting(program, key, value));
        Ok(Settings(settings.collect::<Result<_, _>>()?))
    }

    fn setting(
        &self,
        program: &str,
        key: &Spanned<impl AsRef<str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Setting, BadConfig> {
        let (name, at) = (key.get_ref().as_ref(), key.span().start);
        let arg = self::program(self.command, program).and_then(|program| flag(program, name));
        let Some(arg) = arg else {
            return Err(self.fault(at, name, self.unknown(program, name)));
        };
        let is_switch = !arg.get_action().takes_values();
        let values = self.values(arg, value);
        Ok(Setting {
            key: name.to_owned(),
            line: self.file.line(at),
            values: values.map_err(|(at, why)| self.fault(at, name, why))?,
            is_switch,
        })
    }

    /// Returns a value as it would be typed, or an error with its location.
    fn values(
        &self,
        arg: &Arg,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<(String, usize)>, (usize, String)> {
        let at = value.span().start;
        let one = |value: &Spanned<DeValue<'_>>| {
            let at = value.span().start;
            let text = scalar(value.get_ref()).map_err(|why| (at, why.to_owned()))?;
            text.map(|text| (text, self.file.line(at))).ok_or_else(|| {
                let found = value.get_ref().type_str();
                (at, format!("expected {}, found {found}", shape(arg)))
            })
        };
        match (value.get_ref(), arg.get_action()) {
            (DeValue::Boolean(true), ArgAction::SetTrue) => Ok(vec![(String::new(), 0)]),
            (DeValue::Boolean(false), ArgAction::SetTrue) => Ok(Vec::new()),
            (other, ArgAction::SetTrue) => {
                let found = other.type_str();
                Err((at, format!("expected true or false, found {found}")))
            }
            (DeValue::Array(list), ArgAction::Append) => {
                if list.is_empty() && !arg.get_default_values().is_empty() {
                    let why = "an empty list; leave the key out to have the default";
                    return Err((at, why.to_owned()));
                }
                if list.is_empty() && arg.get_long() == Some("allow") {
                    let why = "an empty list would accept all clients; leave the key out to do \
                               that, or write deny = [\"all\"] to reject all clients";
                    return Err((at, why.to_owned()));
                }
                list.iter().map(one).collect()
            }
            _ => Ok(vec![one(value)?]),
        }
    }

    fn is_flag(&self, program: &str, key: &str) -> bool {
        self::program(self.command, program).is_some_and(|program| flag(program, key).is_some())
    }

    fn unknown(&self, program: &str, key: &str) -> String {
        if self::program(self.command, key).is_some() {
            return format!("what is for a program stands under [{key}]");
        }
        if COMMAND_LINE_ONLY.contains(&key) {
            return format!("--{key} is for the command line only");
        }
        let has_it = |other: &&Command| flag(other, key).is_some();
        let others: Vec<_> = programs(self.command)
            .filter(has_it)
            .map(Command::get_name)
            .collect();
        if let Some(first) = others.first() {
            return format!(
                "{program} has no such option, but {} has: put it into the table [{first}]",
                others.join(", ")
            );
        }
        let names = self::program(self.command, program)
            .into_iter()
            .flat_map(flags);
        match nearest(key, names.map(|(name, _)| name)) {
            Some(name) => format!("{program} has no such option; did you mean {name}?"),
            None => {
                format!("{program} has no such option; socketserver {program} --help lists them")
            }
        }
    }

    fn fault(&self, at: usize, key: &str, why: String) -> BadConfig {
        BadConfig::of_file(self.file.name(), why)
            .at(self.file.line(at))
            .on(key)
    }
}

/// Returns the text as it would be typed, or `None` for other types.
fn scalar(value: &DeValue<'_>) -> Result<Option<String>, &'static str> {
    Ok(match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        // Permissions of 0o600 would become the number 384.
        DeValue::Integer(_) => {
            return Err("write the number as on the command line, without 0x, 0o or 0b");
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    })
}

/// Returns the placeholder that the help shows for a value.
fn shape(arg: &Arg) -> String {
    let name = arg.get_value_names().and_then(|names| names.first());
    let name = name.map_or("a value", |name| name.as_str());
    match arg.get_action() {
        ArgAction::Append => format!("{name} or a list of them"),
        _ => name.to_owned(),
    }
}

/// Returns the most similar name, if it is similar enough.
fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let alike = |name: &&str| strsim::jaro(word, name);
    let nearest = names.max_by(|a, b| alike(a).total_cmp(&alike(b)));
    nearest.filter(|name| alike(name) >= ALIKE)
}
