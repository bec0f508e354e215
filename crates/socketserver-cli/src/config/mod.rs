//! Options from the command line and a file, checked alike.
//!
//! The keys of a configuration are the long flags of its program. What the command line has not
//! given is put in from the file as if it had been typed, and all of it parsed by clap: a value has
//! one meaning, one check and one message, wherever it stands.
//!
//! `file.rs` reads, `settings.rs` knows what may stand there, `fault.rs` says what is wrong with it
//! and where; `effective.rs` shows what came of it all, and `reload.rs` applies changes while
//! serving. What an option does is not known here.

mod effective;
mod error;
mod file;
mod reload;
mod settings;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::cli::Cli;
pub(crate) use effective::Effective;
pub(crate) use error::BadConfig;
pub(crate) use reload::Reloader;
#[cfg(test)]
pub(crate) use reload::{Effect, effect};
use settings::Settings;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) cli: Cli,
    /// All options of a server program.
    pub(crate) effective: Option<Effective>,
}

/// Nothing can be started.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The command line is wrong, or asks for help.
    UsageError(clap::Error),
    Config(BadConfig),
}

impl From<clap::Error> for StartError {
    fn from(error: clap::Error) -> Self {
        Self::UsageError(error)
    }
}

impl From<BadConfig> for StartError {
    fn from(error: BadConfig) -> Self {
        Self::Config(error)
    }
}

/// A file, and the command line that names it: read again at each reload.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    path: PathBuf,
    program: String,
    /// The command line, and where the program's options begin.
    argv: Vec<OsString>,
    options_at: usize,
    /// What was given there, by the names of flags. It wins.
    given: BTreeSet<String>,
}

/// Takes a command line, and the configuration that it names.
pub(crate) fn start(argv: &[OsString]) -> Result<Start, StartError> {
    let parsed = Cli::command().try_get_matches_from(argv);
    let found = match &parsed {
        Ok(matches) => Source::find(argv, matches),
        // What is missing may stand in the file.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => leniently(argv)
            .ok()
            .and_then(|matches| Source::find(argv, &matches)),
        Err(_) => None,
    };
    match found {
        None => {
            let matches = parsed?;
            let mut start = Start::new(&matches)?;
            if let (Some(program), Some((name, matches))) =
                (start.cli.command.program(), matches.subcommand())
            {
                program.server().given = given(name, matches);
            }
            Ok(start)
        }
        Some(source) => {
            let mut start = source.load()?;
            if let Some(program) = start.cli.command.program() {
                program.server().given.clone_from(&source.given);
                let effective = start.effective.clone().unwrap_or_default();
                program.server().origin = Some(Origin { source, effective });
            }
            Ok(start)
        }
    }
}

/// Where the options of a running server come from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) source: Source,
    pub(crate) effective: Effective,
}

/// To be looked at: every program has the options that all have.
pub(crate) fn built() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// Whether it serves, and has a configuration.
#[cfg(test)]
pub(crate) fn is_program(command: &Command, name: &str) -> bool {
    settings::program(command, name).is_some()
}

/// The flags of a program that stand on the command line.
fn given(name: &str, matches: &ArgMatches) -> BTreeSet<String> {
    let command = built();
    let Some(program) = settings::program(&command, name) else {
        return BTreeSet::new();
    };
    settings::flags(program)
        .filter(|(_, arg)| {
            matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
        })
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// What of a command line can be understood.
fn leniently(argv: &[OsString]) -> Result<ArgMatches, clap::Error> {
    Cli::command()
        .ignore_errors(true)
        .try_get_matches_from(argv)
}

impl Start {
    fn new(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let command = built();
        let effective = matches.subcommand().and_then(|(name, matches)| {
            let program = settings::program(&command, name)?;
            Some(Effective::of(program, matches))
        });
        Ok(Self {
            cli: Cli::from_arg_matches(matches)?,
            effective,
        })
    }
}

impl Source {
    fn find(argv: &[OsString], matches: &ArgMatches) -> Option<Self> {
        let (name, matches) = matches.subcommand()?;
        let command = built();
        let program = settings::program(&command, name)?;
        let path = matches.get_one::<PathBuf>("config")?.clone();
        let given = given(program.get_name(), matches);
        // The word that names the program: not the value of an option before it.
        let word = (1..argv.len()).find(|&at| {
            leniently(&argv[..=at]).is_ok_and(|matches| matches.subcommand_name() == Some(name))
        })?;
        Some(Self {
            path,
            program: name.to_owned(),
            argv: argv.to_vec(),
            options_at: word + 1,
            given,
        })
    }

    /// Reads the file, and parses all of it together with the command line.
    pub(crate) fn load(&self) -> Result<Start, BadConfig> {
        let file = file::File::read(&self.path)?;
        let mut settings = Settings::of(&file, &built(), &self.program)?;
        // What the command line overrides is looked at, too; what it adds may be what is missing.
        let alone = |settings: &Settings| {
            let words = [
                OsString::from("socketserver"),
                OsString::from(&self.program),
            ];
            Cli::command().try_get_matches_from(words.into_iter().chain(settings.as_args()))
        };
        match alone(&settings) {
            Err(error) if error.kind() != ErrorKind::MissingRequiredArgument => {
                return Err(error::blame(&file, &settings, &error, alone));
            }
            _ => settings.retain(|key| !self.given.contains(key)),
        }
        let parse = |settings: &Settings| {
            let mut argv = self.argv.clone();
            argv.splice(self.options_at..self.options_at, settings.as_args());
            Start::new(&Cli::command().try_get_matches_from(argv)?)
        };
        parse(&settings).map_err(|error| error::blame(&file, &settings, &error, parse))
    }
}

#[cfg(test)]
mod tests;
