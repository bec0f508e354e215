//! Logs: `tracing`'s events on stderr, as text or JSON.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How much is logged to stderr: off, error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,

    /// How it is written
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// A line for people
    #[default]
    Text,
    /// An object in JSON for each event
    Json,
}

pub(crate) fn init(options: &Options) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(options.log_level)
        .with_writer(io::stderr);
    match options.log_format {
        Format::Text => {
            // https://no-color.org
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            subscriber
                .with_ansi(io::stderr().is_terminal() && !plain)
                .with_target(false)
                .init();
        }
        Format::Json => subscriber.json().flatten_event(true).init(),
    }
}
