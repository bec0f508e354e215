//! Lines from whoever is at the other end of stdin, and what is said to him meanwhile.
//!
//! A person at a terminal gets line editing and a history, and what is said appears above the line
//! that is being typed. A pipe is read as it is. Nothing here makes a server wait: lines are read
//! on a thread of their own or, in a process that must not have threads, when some are there.

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

/// What is typed or piped in, line by line.
pub(crate) struct Lines {
    pub(crate) prompt: &'static str,
    /// Said once to a person.
    pub(crate) greeting: &'static str,
}

/// Longer lines come in pieces.
const LINE: usize = 64 << 10;

/// So many lines may wait for a terminal that shows nothing (because of Ctrl-S, say). Further ones
/// are dropped.
const UNSEEN: usize = 1024;

/// While lines are being edited: the way to the terminal, which is not ours alone.
static ABOVE_PROMPT: OnceLock<SyncSender<Output>> = OnceLock::new();

enum Output {
    Text(String),
    /// Everything before this is to be shown first.
    Mark(SyncSender<()>),
}

/// Whether somebody takes what is to be shown above the prompt.
static EDITING: AtomicBool = AtomicBool::new(false);

/// Nobody waits for longer than this until everything has been shown.
const FLUSH: Duration = Duration::from_millis(500);

/// How the terminal was found.
static FOUND: Mutex<Option<Termios>> = Mutex::new(None);

impl Lines {
    /// Calls `obey` for each line, without its end, for as long as there are any.
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

/// Shows text to the operator. It never waits: what nobody takes is dropped.
pub(crate) fn say(text: &str) {
    if text.is_empty() || above_prompt(text) {
        return;
    }
    Stream::Stdout.put(text.as_bytes());
}

/// Shows text above the line that is being edited; `false` if none is.
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

/// Leaves the terminal as it was found, whatever is being typed. To be called before exiting.
pub(crate) fn restore() {
    // Held to the end: whoever comes second exits as soon as this returns.
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
    // What follows does not belong behind the prompt.
    Stream::Stdout.put(b"\n");
}

fn lock_found() -> std::sync::MutexGuard<'static, Option<Termios>> {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a person is there. A process in the background has the terminal, too, but would be
/// stopped when it reads from it: termios(3), "job control".
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
        // A terminal that cannot do more than lines.
        return Ok(());
    };
    let (to, shown) = sync_channel(UNSEEN);
    thread::Builder::new()
        .name("printer".into())
        .spawn(move || {
            for shown in shown {
                let printed = match shown {
                    // The editor takes nothing more.
                    Output::Text(text) if !EDITING.load(Ordering::Acquire) => {
                        Stream::Stdout.put(text.as_bytes());
                        true
                    }
                    Output::Text(text) => printer.print(text).is_ok(),
                    // One text can be on its way to the editor. When it takes the second of these,
                    // it has shown what came before the first.
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
    // From here on whoever says something writes by himself.
    EDITING.store(false, Ordering::Release);
    match closed {
        // Ctrl-C, which is no signal while a line is edited. The end is near: until then there are
        // plain lines, and the next Ctrl-C is a signal again.
        ReadlineError::Interrupted => {
            let _ = kill_process(getpid(), Signal::INT);
            read(obey);
        }
        ReadlineError::Eof => {
            say("the console is closed, and the server goes on; Ctrl-C stops it\n");
        }
        error => tracing::warn!(%error, "the console is closed"),
    }
}

/// Why there are no more lines.
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

/// For a process that forks, and must not have threads then.
fn attend_in_loop(
    bound: &mut BoundServers,
    mut obey: impl FnMut(&[u8]) + Send + 'static,
) -> anyhow::Result<()> {
    let stdin = io::stdin();
    // Files, and devices such as /dev/null, cannot be waited for: epoll_ctl(2), EPERM.
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
        // It is ready, so this does not wait.
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
