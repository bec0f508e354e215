//! One command in its own shell: started, watched, and killed with all processes of its group.
//!
//! This file does not depend on the framing. `run` blocks in `poll(2)` until the command writes
//! output, the shell exits, the client disconnects, the server cancels, or the time is over.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::output::Output;
use super::process_tree;
use crate::descriptors;

/// Limits at which the server kills a command.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) until: Option<Instant>,
    /// Maximum bytes of stdout and stderr together.
    pub(super) output: u64,
}

/// Descriptors whose events end a command, too.
#[derive(Clone, Copy)]
pub(super) struct Listeners<'a> {
    /// The client's socket.
    pub(super) client: BorrowedFd<'a>,
    /// Readable when the server cancels the command. `None` if the server can shut down the socket
    /// instead.
    pub(super) hangup: Option<BorrowedFd<'a>>,
}

/// The reason why a command, or the wait for a slot, ended early.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The client has closed its side, or the server has cancelled the connection.
    Gone,
    /// This process has received the signal that cancels it.
    HungUp,
    TimeIsOver,
    /// The time limit of the whole connection is over, not that of the command.
    RequestIsOver,
    TooMuchOutput,
    /// A resource of the server failed, such as the storage for the output.
    Failed(io::Error),
}

pub(super) struct Outcome {
    pub(super) status: ExitStatus,
    /// `None` if the server did not kill the command.
    pub(super) stopped: Option<Stopped>,
    pub(super) output: Output,
}

/// Runs a command until it exits, or until a limit or a listener ends it.
///
/// When this returns, all processes of the command's group have exited or been killed, and the
/// shell is reaped. If the command was ended early, its descendants in other groups of the session
/// have been killed as well.
///
/// # Errors
/// Returns an error if the system has no process or no descriptor left for the command.
pub(super) fn run(command: &[u8], listeners: Listeners<'_>, limits: Limits) -> io::Result<Outcome> {
    let mut shell = Command::new("/bin/sh");
    for variable in crate::service_manager::VARIABLES {
        shell.env_remove(variable);
    }
    let mut child = shell
        .arg("-c")
        .arg(with_limit(command, descriptors::before()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let pipes = [
        child.stdout.take().map(OwnedFd::from),
        child.stderr.take().map(OwnedFd::from),
    ];
    let mut group = Group::new(child)?;
    let mut capture = Capture {
        pipes,
        output: Output::default(),
        limit: limits.output,
        piece: vec![0; 64 << 10],
    };
    let stopped = capture.until_exit(&group, listeners, limits.until);
    if stopped.is_err() {
        // This has to come before the shell exits: afterwards its children cannot be found.
        process_tree::kill(group.leader);
    }
    // The group is dead after this and writes no more, so the pipes hold the rest of its output.
    let status = group.end()?;
    let stopped = match stopped {
        Ok(()) => capture.take_rest().err(),
        Err(Stopped::TimeIsOver) => capture.take_rest().err().or(Some(Stopped::TimeIsOver)),
        Err(stopped) => Some(stopped),
    };
    Ok(Outcome {
        status,
        stopped,
        output: capture.output,
    })
}

/// Prefixes the command with `ulimit` if this program has changed its own soft limit of
/// descriptors, so that the command gets the original limit. The prefix is on the same line, so
/// that the line numbers of the shell stay right.
fn with_limit(command: &[u8], limit: Option<u64>) -> OsString {
    let command = OsStr::from_bytes(command);
    let Some(limit) = limit else {
        return command.into();
    };
    let mut line = OsString::from(format!("ulimit -S -n {limit}; "));
    line.push(command);
    line
}

/// Waits until a descriptor is readable, and watches the listeners at the same time.
pub(super) fn wait_readable(
    fd: BorrowedFd<'_>,
    listeners: Listeners<'_>,
    until: Option<Instant>,
) -> Result<(), Stopped> {
    while wait([Some(fd)], listeners, until)? == [false] {}
    Ok(())
}

/// The shell, and its descendants that are in its process group.
struct Group {
    child: Child,
    leader: Pid,
    exited: OwnedFd,
    status: Option<ExitStatus>,
}

impl Group {
    fn new(mut child: Child) -> io::Result<Self> {
        let leader = Pid::from_child(&child);
        match pidfd_open(leader, PidfdFlags::empty()) {
            Ok(exited) => Ok(Self {
                child,
                leader,
                exited,
                status: None,
            }),
            Err(errno) => {
                end(&mut child, leader)?;
                Err(errno.into())
            }
        }
    }

    fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let status = end(&mut self.child, self.leader)?;
        self.status = Some(status);
        Ok(status)
    }
}

/// Kills the group, also when a panic unwinds.
impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Kills a process group and reaps its leader. The kill has to come first: the kernel cannot reuse
/// the group's number until the leader is reaped.
fn end(child: &mut Child, leader: Pid) -> io::Result<ExitStatus> {
    // The kill fails if all processes of the group have exited.
    let _ = kill_process_group(leader, Signal::KILL);
    child.wait()
}

struct Capture {
    /// stdout and stderr, until they end.
    pipes: [Option<OwnedFd>; 2],
    output: Output,
    limit: u64,
    piece: Vec<u8>,
}

impl Capture {
    /// Reads the output of the command until its shell has exited.
    fn until_exit(
        &mut self,
        group: &Group,
        listeners: Listeners<'_>,
        until: Option<Instant>,
    ) -> Result<(), Stopped> {
        loop {
            let [stdout, stderr] = &self.pipes;
            let fds = [stdout.as_ref(), stderr.as_ref(), Some(&group.exited)];
            let fds = fds.map(|fd| fd.map(AsFd::as_fd));
            let [stdout, stderr, exited] = wait(fds, listeners, until)?;
            if exited {
                return Ok(());
            }
            for (stream, ready) in [stdout, stderr].into_iter().enumerate() {
                if ready && self.read(stream, usize::MAX)? == 0 {
                    self.pipes[stream] = None;
                }
            }
        }
    }

    /// Reads the bytes that are in the pipes now, and no later ones. A process outside of the group
    /// may still write to the pipes, but its output does not belong to this command.
    fn take_rest(&mut self) -> Result<(), Stopped> {
        for stream in 0..self.pipes.len() {
            let left = self.pipes[stream].as_ref().map(ioctl_fionread);
            let mut left = match left {
                Some(Ok(left)) => usize::try_from(left).unwrap_or(usize::MAX),
                _ => 0,
            };
            while left > 0 {
                match self.read(stream, left)? {
                    0 => break,
                    n => left -= n,
                }
            }
        }
        Ok(())
    }

    /// Reads once from a pipe that is ready. Returns 0 at its end.
    fn read(&mut self, stream: usize, most: usize) -> Result<usize, Stopped> {
        let Some(pipe) = &self.pipes[stream] else {
            return Ok(0);
        };
        let most = most.min(self.piece.len());
        let piece = &mut self.piece[..most];
        let n = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut *piece)).unwrap_or(0);
        let room = self.limit - self.output.len();
        let kept = n.min(usize::try_from(room).unwrap_or(usize::MAX));
        self.output
            .push(stream, &self.piece[..kept])
            .map_err(Stopped::Failed)?;
        if kept < n {
            return Err(Stopped::TooMuchOutput);
        }
        Ok(n)
    }
}

/// Waits until one of the descriptors is ready, and returns which ones are. Skips `None`.
fn wait<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    listeners: Listeners<'_>,
    until: Option<Instant>,
) -> Result<[bool; N], Stopped> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    if left.is_some_and(|left| left.is_zero()) {
        return Err(Stopped::TimeIsOver);
    }
    // RDHUP only: the next command of the client is read after this one has ended.
    let mut polled = vec![PollFd::from_borrowed_fd(listeners.client, PollFlags::RDHUP)];
    polled.extend(
        listeners
            .hangup
            .into_iter()
            .chain(fds.into_iter().flatten())
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
    );
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut polled, left.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok([false; N]),
        // The kernel is out of memory. A retry would loop without waiting.
        Err(errno) => return Err(Stopped::Failed(errno.into())),
    }
    let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
    if ready.next() == Some(true) {
        return Err(Stopped::Gone);
    }
    if listeners.hangup.is_some() && ready.next() == Some(true) {
        return Err(Stopped::HungUp);
    }
    Ok(fds.map(|fd| fd.is_some() && ready.next() == Some(true)))
}
