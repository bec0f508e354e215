//! Lines from stdin, and messages to the operator.
//!
//! An operator at a terminal gets line editing and a history, and messages appear above the line
//! that is being typed. A pipe is read without editing. This module never blocks a server: it reads
//! lines in a separate thread or, in a process that must not have threads, when input is ready.

use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{FileType, fstat};
use rustix::process::{Signal, getpgrp, getpid, kill_process};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor, ExternalPrinter};
use socketserver::Watched;

use crate::cli::Model;
use crate::nonblocking::Stream;
use crate::serve::BoundServers;

/// The lines of stdin, typed or piped in.
pub(crate) struct Lines {
    pub(crate) prompt: &'static str,
    /// A greeting that is shown once at a terminal.
    pub(crate) greeting: &'static str,
}

/// The maximum length of a line; longer lines are split.
const LINE: usize = 64 << 10;

/// The maximum number of messages that wait for a stopped terminal (by Ctrl-S, for example).
/// Further messages are dropped.
const UNSEEN: usize = 1024;

/// The channel to the editor, which shares the terminal with other threads.
static ABOVE_PROMPT: OnceLock<SyncSender<Output>> = OnceLock::new();

enum Output {
    Text(String),
    /// A request to confirm that all earlier output is shown.
    Mark(SyncSender<()>),
}

/// True while an editor takes messages to show above the prompt.
static EDITING: AtomicBool = AtomicBool::new(false);

/// The maximum time to wait until all messages are shown.
const FLUSH: Duration = Duration::from_millis(500);

/// The settings of the terminal at start.
static FOUND: Mutex<Option<Termios>> = Mutex::new(None);

impl Lines {
    /// Calls `obey` for each line, without its line end, until stdin ends.
    pub(crate) fn attend(
        self,
        bound: &mut BoundServers,
        obey: impl FnMut(&[u8]) + Send + 'static,
    ) -> anyhow::Result<()> {
        if bound.model == Model::Forking {
            return attend_in_loop(bound, obey);
        }
        let reading = if is_interactive() {
            *lock_found() = tcgetattr(io::stdin()).ok();
            let mut editor = editor()?;
            // Other threads may print from here on.
            print_above(&mut editor)?;
            thread::Builder::new()
                .name("console".into())
                .spawn(move || {
                    say(&format!("{}\n", self.greeting));
                    edit(&mut editor, self.prompt, obey);
                })
        } else {
            thread::Builder::new()
                .name("console".into())
                .spawn(|| read(obey))
        };
        reading.map(drop).context("cannot start the console")
    }
}

/// Shows text to the operator. Never blocks: text that cannot be written at once is dropped.
pub(crate) fn say(text: &str) {
    if text.is_empty() || above_prompt(text) {
        return;
    }
    Stream::Stdout.put(text.as_bytes());
}

/// Shows text above the line that is being edited. Returns false if no line is being edited.
pub(crate) fn above_prompt(text: &str) -> bool {
    let Some(printer) = ABOVE_PROMPT
        .get()
        .filter(|_| EDITING.load(Ordering::Acquire))
    else {
        return false;
    };
    match printer.try_send(Output::Text(text.to_owned())) {
        Ok(()) | Err(TrySendError::Full(_)) => true,
        Err(TrySendError::Disconnected(_)) => false,
    }
}

/// Restores the settings of the terminal. Call it before the process exits.
pub(crate) fn restore() {
    // The lock is held to the end, because a second caller exits as soon as this function returns.
    let mut slot = lock_found();
    let Some(found) = slot.take() else {
        return;
    };
    if let Some(printer) = ABOVE_PROMPT
        .get()
        .filter(|_| EDITING.load(Ordering::Acquire))
    {
        let (shown, all) = sync_channel(1);
        let _ = printer.try_send(Output::Mark(shown));
        let _ = all.recv_timeout(FLUSH);
    }
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, &found);
    // Later output starts on a line of its own.
    Stream::Stdout.put(b"\n");
}

fn lock_found() -> std::sync::MutexGuard<'static, Option<Termios>> {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns true if stdin and stdout are a terminal in the foreground. A process in the background
/// also has the terminal, but a read would stop it: termios(3), "job control".
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal() && in_foreground()
}

fn in_foreground() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}

type LineEditor = Editor<(), MemHistory>;

pub(crate) fn editor() -> anyhow::Result<LineEditor> {
    let config = Config::builder().auto_add_history(true).build();
    Editor::with_history(config, MemHistory::new()).context("cannot use the terminal")
}

fn print_above(editor: &mut LineEditor) -> anyhow::Result<()> {
    let Ok(mut printer) = editor.create_external_printer() else {
        // The terminal supports only plain lines.
        return Ok(());
    };
    let (to, shown) = sync_channel(UNSEEN);
    thread::Builder::new()
        .name("printer".into())
        .spawn(move || {
            for shown in shown {
                let printed = match shown {
                    // The editor has stopped and takes no more text.
                    Output::Text(text) if !EDITING.load(Ordering::Acquire) => {
                        Stream::Stdout.put(text.as_bytes());
                        true
                    }
                    Output::Text(text) => printer.print(text).is_ok(),
                    // One text can be on its way to the editor. Once the editor takes the second of
                    // these, it has shown all text that came before the first.
                    Output::Mark(all) => {
                        (0..2).all(|_| printer.print(String::new()).is_ok()) && all.send(()).is_ok()
                    }
                };
                if !printed {
                    return;
                }
            }
        })
        .context("cannot start the console")?;
    let _ = ABOVE_PROMPT.set(to);
    EDITING.store(true, Ordering::Release);
    Ok(())
}

fn edit(editor: &mut LineEditor, prompt: &str, mut obey: impl FnMut(&[u8])) {
    let closed = edit_lines(editor, prompt, &mut obey);
    // From here on, callers write to the terminal directly.
    EDITING.store(false, Ordering::Release);
    match closed {
        // Ctrl-C sends no signal while a line is edited, and stops the server here. Until the end,
        // lines are read without editing, and the next Ctrl-C is a signal again.
        ReadlineError::Interrupted => {
            let _ = kill_process(getpid(), Signal::INT);
            read(obey);
        }
        ReadlineError::Eof => {
            say("the console is closed and the server continues; press Ctrl-C to stop it\n");
        }
        error => tracing::warn!(%error, "the console is closed"),
    }
}

/// Edits lines until an error, and returns the error.
fn edit_lines(editor: &mut LineEditor, prompt: &str, mut obey: impl FnMut(&[u8])) -> ReadlineError {
    loop {
        match editor.readline(prompt) {
            Ok(line) => obey(line.as_bytes()),
            Err(error) => return error,
        }
    }
}

fn read(mut obey: impl FnMut(&[u8])) {
    if io::stdin().is_terminal() && !in_foreground() {
        return;
    }
    let mut input = BufReader::new(io::stdin());
    let mut line = Vec::new();
    loop {
        line.clear();
        match input
            .by_ref()
            .take(LINE as u64)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => obey(without_end(&line)),
        }
    }
}

/// Reads lines in the accept loop of a process that forks and therefore must not have threads.
fn attend_in_loop(
    bound: &mut BoundServers,
    mut obey: impl FnMut(&[u8]) + Send + 'static,
) -> anyhow::Result<()> {
    let stdin = io::stdin();
    // epoll cannot wait for files and devices such as `/dev/null`: epoll_ctl(2), EPERM.
    let kind = fstat(&stdin).map(|stat| FileType::from_raw_mode(stat.st_mode));
    let is_pipe = matches!(kind, Ok(FileType::Fifo | FileType::Socket));
    let is_person = stdin.is_terminal() && in_foreground();
    if !is_pipe && !is_person {
        return Ok(());
    }
    let fd = stdin
        .as_fd()
        .try_clone_to_owned()
        .context("cannot read stdin")?;
    let mut pending = Vec::new();
    bound.group.watch(fd, move || {
        let mut bytes = [0; 4096];
        // The descriptor is ready, so the read does not block.
        let n = rustix::io::read(io::stdin(), &mut bytes)?;
        pending.extend_from_slice(&bytes[..n]);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<_> = pending.drain(..=end).collect();
            obey(without_end(&line));
        }
        if n == 0 || pending.len() > LINE {
            obey(&std::mem::take(&mut pending));
        }
        Ok(if n == 0 {
            Watched::Done
        } else {
            Watched::Again
        })
    });
    Ok(())
}

fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}
