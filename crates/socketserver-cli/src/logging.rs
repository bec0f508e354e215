//! The log: `tracing` events on stderr or in a file, as text or JSON. If the reader is slow or has
//! closed, lines are dropped; the log never blocks a server.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::Context;
use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata};
use tracing_subscriber::layer::{Context as LayerContext, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::log_rate::LogRate;
use crate::nonblocking::Stream;
use crate::{reopen, terminal};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Minimum level of events in the log: off, error, warn, info, debug or trace
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Logging"
    )]
    log_level: LevelFilter,

    /// Format of the log
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        help_heading = "Logging"
    )]
    log_format: Format,

    /// Maximum number of lines of one kind per second; further lines are counted and the count is
    /// logged ("none" for no limit)
    #[arg(
        long,
        global = true,
        value_name = "N",
        default_value = "200",
        value_parser = lines,
        help_heading = "Logging"
    )]
    log_rate: LineRate,

    /// Append the log to this file instead of stderr; SIGHUP and SIGUSR1 reopen the file, for
    /// logrotate
    #[arg(long, global = true, value_name = "FILE", help_heading = "Logging")]
    log_file: Option<PathBuf>,
}

/// A number of lines, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LineRate(Option<u32>);

fn lines(text: &str) -> Result<LineRate, &'static str> {
    match text.parse() {
        _ if text == "none" => Ok(LineRate(None)),
        Ok(n @ 1..) => Ok(LineRate(Some(n))),
        _ => Err("write a number of lines such as 200, or none"),
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// One line of text for each event
    #[default]
    Text,
    /// One JSON object for each event
    Json,
}

pub(crate) fn init(options: &Options) -> anyhow::Result<()> {
    if let Some(path) = &options.log_file {
        let file =
            reopen::open(path).with_context(|| format!("cannot log to {}", path.display()))?;
        *log_file() = Some(file);
        let path = path.clone();
        reopen::register(move || match reopen::open(&path) {
            Ok(file) => *log_file() = Some(file),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%error, "the log {path} cannot be reopened; continuing with the old file");
            }
        });
    }
    let lines = fmt::layer()
        // The default reaction to a line that cannot be written is a panic.
        .log_internal_errors(false)
        .with_writer(|| Lossy);
    let lines = match options.log_format {
        Format::Text => {
            // https://no-color.org
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            lines
                .with_ansi(io::stderr().is_terminal() && !plain && options.log_file.is_none())
                .with_target(false)
                .boxed()
        }
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    // A panic in a handler is caught and logged for its client. The text of the standard library's
    // hook must not block the thread on a slow reader of stderr.
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let trace = Backtrace::capture();
        let text = match trace.status() {
            BacktraceStatus::Captured => format!("thread {name}: {panic}\n{trace}\n"),
            _ => format!("thread {name}: {panic}\n"),
        };
        let _ = Lossy.write(text.as_bytes());
    }));
    let rate = options.log_rate.0.map(|limit| Limited {
        rate: LogRate::new(limit),
        format: options.log_format,
    });
    let limited = match rate {
        Some(limited) => lines.with_filter(LIMITED.get_or_init(|| limited)).boxed(),
        None => lines,
    };
    let (level, handle) = reload::Layer::new(options.log_level);
    let _ = LEVEL.set(handle);
    tracing_subscriber::registry()
        .with(level)
        .with(limited)
        .init();
    Ok(())
}

/// Logs the last summaries of lines that were left out. Call it before the process exits.
pub(crate) fn end() {
    if let Some(limited) = LIMITED.get() {
        limited
            .rate
            .rest()
            .iter()
            .for_each(|text| limited.write_warning(text));
    }
}

static LIMITED: OnceLock<Limited> = OnceLock::new();

struct Limited {
    rate: LogRate,
    format: Format,
}

impl Limited {
    /// Writes a line directly, because an event within a filter would reach the filter again.
    fn write_warning(&self, text: &str) {
        let now = humantime::format_rfc3339_micros(std::time::SystemTime::now());
        let line = match self.format {
            Format::Text => format!("{now}  WARN {text}\n"),
            Format::Json => {
                let now = now.to_string();
                let event = serde_json::json!({
                    "timestamp": now, "level": "WARN", "message": text, "target": module_path!(),
                });
                format!("{event}\n")
            }
        };
        let _ = Lossy.write(line.as_bytes());
    }
}

impl<S> Filter<S> for &'static Limited {
    fn enabled(&self, _: &Metadata<'_>, _: &LayerContext<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &LayerContext<'_, S>) -> bool {
        self.rate.allows(event, |text| self.write_warning(text))
    }
}

/// Returns the file of the log, if the log does not go to stderr.
fn log_file() -> MutexGuard<'static, Option<File>> {
    static FILE: Mutex<Option<File>> = Mutex::new(None);
    FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Changes the level of the log. Forked children keep the level with which they began.
pub(crate) fn set_level(options: &Options) {
    if let Some(level) = LEVEL.get() {
        // The call fails only if no subscriber is left, and then there is no log.
        let _ = level.reload(options.log_level);
    }
}

/// A writer to stderr that drops bytes which cannot be written at once.
struct Lossy;

/// The number of lines that were dropped and not yet reported.
static DROPPED: AtomicU64 = AtomicU64::new(0);

impl Write for Lossy {
    /// Takes a whole line, because the formatter writes whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut *log_file() {
            // If the disk is full, lines are lost and the servers continue.
            if file.write_all(line).is_err() {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(line.len());
        }
        let stderr = Stream::Stderr;
        if stderr.is_terminal() && terminal::above_prompt(&String::from_utf8_lossy(line)) {
            return Ok(line.len());
        }
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            // The text begins a new line because the previous line may be incomplete.
            let note =
                format!("\n({dropped} lines were dropped because the reader was too slow)\n");
            if stderr.put(note.as_bytes()) < note.len() {
                DROPPED.fetch_add(dropped + 1, Ordering::Relaxed);
                return Ok(line.len());
            }
        }
        if stderr.put(line) < line.len() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
