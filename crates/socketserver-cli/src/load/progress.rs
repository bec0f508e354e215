//! The display of progress on a terminal, and signals that end the load early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::nonblocking::Stream;

use super::report::thousands;
use super::worker::Progress;

/// Sets handlers: the first signal ends the load, and the second one ends the process without a
/// report.
pub(super) fn catch_signals(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // The order matters: at the first signal, the flag is not yet set when the first handler
        // reads it.
        flag::register_conditional_default(signal, stop.clone())
            .and_then(|_| flag::register(signal, stop.clone()))
            .context("cannot catch signals")?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    Connecting,
    Loading {
        measured_from: Instant,
        end: Option<Instant>,
    },
    Ending,
}

/// A line on stderr, if it is a terminal. The line is rewritten once a second and removed at the
/// end.
pub(super) struct ProgressLine<'a> {
    progress: &'a Progress,
    is_terminal: bool,
    shown: Instant,
    /// The number of finished requests at that time.
    finished: u64,
    since: Instant,
}

const EACH: Duration = Duration::from_secs(1);

impl<'a> ProgressLine<'a> {
    pub(super) fn new(progress: &'a Progress) -> Self {
        let now = Instant::now();
        Self {
            progress,
            is_terminal: Stream::Stderr.is_terminal(),
            shown: now,
            finished: 0,
            since: now,
        }
    }

    /// Returns the time until the next update.
    pub(super) fn next(&self) -> Duration {
        EACH.saturating_sub(self.shown.elapsed())
            .max(Duration::from_millis(1))
    }

    pub(super) fn show(&mut self, stage: Stage) {
        let now = Instant::now();
        let before = std::mem::replace(&mut self.shown, now);
        let finished = self.progress.finished.load(Ordering::Relaxed);
        let new = finished - std::mem::replace(&mut self.finished, finished);
        if !self.is_terminal {
            return;
        }
        let millis = (now - before).as_millis().max(1);
        let rate = u64::try_from(u128::from(new) * 1000 / millis).unwrap_or(u64::MAX);
        let line = self.line(stage, now, finished, rate);
        // Rewrites the line from its beginning and erases the rest.
        Stream::Stderr.put(format!("\r{line}\x1b[K").as_bytes());
    }

    fn line(&self, stage: Stage, now: Instant, finished: u64, rate: u64) -> String {
        let failed = self.progress.failed.load(Ordering::Relaxed);
        let failed = if failed > 0 {
            format!(", {} failed", thousands(failed))
        } else {
            String::new()
        };
        let (measured_from, end) = match stage {
            Stage::Ending => return "ending".into(),
            Stage::Connecting => {
                let opened = self.progress.opened.load(Ordering::Relaxed);
                let seconds = (now - self.since).as_secs();
                return format!(
                    "connecting: {} are there after {seconds} s{failed}",
                    thousands(opened)
                );
            }
            Stage::Loading { measured_from, end } => (measured_from, end),
        };
        let at = if now < measured_from {
            format!("warming up, {} s left", (measured_from - now).as_secs() + 1)
        } else {
            let seconds = (now - measured_from).as_secs();
            match end {
                Some(end) if now > end => "waiting for the last answers".into(),
                Some(end) => format!("{seconds} of {} s", (end - measured_from).as_secs()),
                None => format!("{seconds} s"),
            }
        };
        format!(
            "{at}: {} requests, {}/s{failed}",
            thousands(finished),
            thousands(rate)
        )
    }

    pub(super) fn clear(&self) {
        if self.is_terminal {
            Stream::Stderr.put(b"\r\x1b[K");
        }
    }
}
