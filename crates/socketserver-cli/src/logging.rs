//! Logs: `tracing`'s events on stderr or in a file, as text or JSON. A reader that is slow, or gone, costs lines
//! and never makes a server wait.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
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
    /// How much is logged to stderr: off, error, warn, info, debug or trace
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Logging"
    )]
    log_level: LevelFilter,

    /// How the log is written
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        help_heading = "Logging"
    )]
    log_format: Format,

    /// How many lines of one kind are logged per second; further ones are counted, and the count is
    /// logged ("none" for any number)
    #[arg(
        long,
        global = true,
        value_name = "N",
        default_value = "200",
        value_parser = lines,
        help_heading = "Logging"
    )]
    log_rate: LineRate,

    /// Append the log to this file instead; SIGHUP and SIGUSR1 open it anew, as logrotate needs it
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
    /// A line for people
    #[default]
    Text,
    /// An object in JSON for each event
    Json,
}

pub(crate) fn init(options: &Options) -> anyhow::Result<()> {
    if let Some(path) = &options.log_file {
        let file = open(path).with_context(|| format!("cannot log to {}", path.display()))?;
        *log_file() = Some(file);
        let path = path.clone();
        reopen::register(move || match open(&path) {
            Ok(file) => *log_file() = Some(file),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%error, "the log {path} cannot be opened anew; the old file is used");
            }
        });
    }
    let lines = fmt::layer()
        // A line that cannot be written would be complained about by a panic.
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
    // A panic is caught and logged where it concerns a client. The text of the standard library's
    // hook must not make the thread wait for a reader of stderr.
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

/// What was left out at last is told. To be called before exiting.
pub(crate) fn end() {
    if let Some(limited) = LIMITED.get() {
        limited
            .rate
            .rest()
            .iter()
            .for_each(|text| limited.tell(text));
    }
}

static LIMITED: OnceLock<Limited> = OnceLock::new();

struct Limited {
    rate: LogRate,
    format: Format,
}

impl Limited {
    /// Writes a line itself: an event within a filter would come back to it.
    fn tell(&self, text: &str) {
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
        self.rate.allows(event, |text| self.tell(text))
    }
}

/// Where the log goes if not to stderr.
fn log_file() -> MutexGuard<'static, Option<File>> {
    static FILE: Mutex<Option<File>> = Mutex::new(None);
    FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Other users of the machine cannot read what clients send.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Changes how much is logged from now on; forked children keep the level that they began with.
pub(crate) fn set_level(options: &Options) {
    if let Some(level) = LEVEL.get() {
        // It fails only if there is no subscriber any more, and nothing to be told.
        let _ = level.reload(options.log_level);
    }
}

/// Writes to stderr what it takes at once, and drops the rest.
struct Lossy;

/// Lines that were dropped and not told of yet.
static DROPPED: AtomicU64 = AtomicU64::new(0);

impl Write for Lossy {
    /// Takes a whole line, as the formatter hands it over.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut *log_file() {
            // On a full disk lines are lost, and the servers go on.
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
            // It begins a line of its own, as the one before may have been cut.
            let told = format!("\n({dropped} lines were dropped: nobody read them)\n");
            if stderr.put(told.as_bytes()) < told.len() {
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
