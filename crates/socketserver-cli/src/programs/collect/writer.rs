//! The thread that writes collected messages, and repeats a write while the disk is full.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use socketserver::GroupHandle;
use socketserver::greenroom::sync::{OneshotSender, Receiver};

use super::Item;
use super::sink::{Sink, is_full};

/// Interval between two attempts on a full disk. The kernel does not report free space.
const RETRY: Duration = Duration::from_secs(1);

/// The state of the output that other threads read, and their requests to it.
#[derive(Default)]
pub(super) struct Output {
    state: Mutex<State>,
    asked: Condvar,
}

#[derive(Default)]
struct State {
    /// True if the file has to be reopened.
    reopen: bool,
    /// The reason why the output cannot be written now. `None` if it can.
    full: Option<String>,
}

impl Output {
    /// Requests that the writer reopens the file before its next write.
    pub(super) fn reopen(&self) {
        self.state().reopen = true;
        self.asked.notify_one();
    }

    /// Returns the reason for `/readyz` if the output cannot be written.
    pub(super) fn check(&self) -> Result<(), String> {
        match &self.state().full {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes items of the queue until `Item::End`. Stops the servers if a write fails.
pub(super) fn write_all(
    arriving: &Receiver<Item>,
    sink: Sink,
    output: &Output,
    group: &GroupHandle,
) -> anyhow::Result<()> {
    let mut writer = Writer { sink, output };
    let written = writer.write_until_end(arriving);
    if written.is_err() {
        group.drain(Duration::ZERO);
    }
    written.context("cannot write what was collected")
}

struct Writer<'o> {
    sink: Sink,
    output: &'o Output,
}

impl Writer<'_> {
    fn write_until_end(&mut self, arriving: &Receiver<Item>) -> io::Result<()> {
        let mut marks = Vec::new();
        loop {
            // When the queue is empty, the pending messages are flushed.
            let item = match arriving.try_recv() {
                Ok(Some(item)) => item,
                _ => {
                    self.until_done(Sink::flush)?;
                    marks.drain(..).for_each(tell);
                    match arriving.recv() {
                        Ok(item) => item,
                        Err(_) => return Ok(()),
                    }
                }
            };
            match item {
                Item::Message(bytes) => self.until_done(|sink| sink.write(&bytes))?,
                Item::Mark(mark) => marks.push(mark),
                // The next flush reopens the file.
                Item::Look => {}
                Item::End => {
                    self.until_done(Sink::flush)?;
                    marks.drain(..).for_each(tell);
                    return Ok(());
                }
            }
        }
    }

    /// Repeats a write while the disk is full. During that time the writer takes no item from the
    /// queue, so that clients wait.
    fn until_done(&mut self, mut write: impl FnMut(&mut Sink) -> io::Result<()>) -> io::Result<()> {
        let mut full_since = None;
        loop {
            self.reopen_if_asked();
            let written = write(&mut self.sink);
            let Err(error) = written else {
                if let Some(since) = full_since {
                    self.output.state().full = None;
                    let name = self.sink.name();
                    tracing::info!(after = ?Instant::elapsed(&since), "{name} is written to again");
                }
                return Ok(());
            };
            if !is_full(&error) {
                return Err(error);
            }
            let why = format!("cannot write to {}: {error}", self.sink.name());
            self.output.state().full = Some(why.clone());
            if full_since.is_none() {
                full_since = Some(Instant::now());
                tracing::warn!("{why}; clients wait until there is room, and nothing is confirmed");
            }
            let state = self.output.state();
            let asked = self
                .output
                .asked
                .wait_timeout_while(state, RETRY, |state| !state.reopen);
            drop(asked);
        }
    }

    fn reopen_if_asked(&mut self) {
        if !std::mem::take(&mut self.output.state().reopen) {
            return;
        }
        let name = self.sink.name();
        match self.sink.reopen() {
            Ok(()) => tracing::info!("{name} was opened anew"),
            Err(error) => {
                tracing::warn!(%error, "{name} cannot be opened anew; the old file is used");
            }
        }
    }
}

fn tell(mark: OneshotSender<()>) {
    // The handler may have ended.
    let _ = mark.send(());
}
