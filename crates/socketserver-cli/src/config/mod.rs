//! Options from the command line and a file, with the same checks.
//!
//! The keys of a configuration are the long flags of its program. Options that the command line
//! does not give are added from the file as if they had been typed, and clap parses all of them. A
//! value therefore has the same meaning, check and message in both places.
//!
//! `file.rs` reads the file, `settings.rs` defines its keys, and `error.rs` locates errors.
//! `effective.rs` shows the resulting options, and `reload.rs` applies changes while the server
//! runs. This module does not know the effects of options.

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

/// A parsed command with its options.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) cli: Cli,
    /// The values of all options of a server program.
    pub(crate) effective: Option<Effective>,
}

/// An error that prevents the start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// A wrong command line, or a request for help.
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

/// A file and the command line that names it, read again at each reload.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    path: PathBuf,
    program: String,
    /// The command line, and the index at which the program's options begin.
    argv: Vec<OsString>,
    options_at: usize,
    /// The flags on the command line, which take precedence over the file.
    given: BTreeSet<String>,
}

/// Parses a command line and the configuration that it names.
pub(crate) fn start(argv: &[OsString]) -> Result<Start, StartError> {
    let parsed = Cli::command().try_get_matches_from(argv);
    let found = match &parsed {
        Ok(matches) => Source::find(argv, matches),
        // The file may contain the missing option.
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

/// The origin of the options of a running server.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) source: Source,
    pub(crate) effective: Effective,
}

/// Returns the definition of the command line, with the shared options of all programs.
pub(crate) fn built() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// Returns true if the command is a server program, which can have a configuration.
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

/// Parses a command line and ignores errors.
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
        // Finds the name of the program, which may follow values of global options.
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

    /// Reads the file, and parses it together with the command line.
    pub(crate) fn load(&self) -> Result<Start, BadConfig> {
        let file = file::File::read(&self.path)?;
        let mut settings = Settings::of(&file, &built(), &self.program)?;
        // The file alone is checked as well, because the command line may override an invalid
        // value. The command line may also supply a required option.
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
