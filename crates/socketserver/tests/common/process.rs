//! A process seen from outside, through proc(5), and tests that have one to themselves.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use super::{PATIENCE, comes_true};

/// How many threads the process has.
pub fn threads(pid: u32) -> usize {
    entries(&format!("/proc/{pid}/task"))
}

/// How many descriptors it has open.
pub fn descriptors(pid: u32) -> usize {
    entries(&format!("/proc/{pid}/fd"))
}

/// What its descriptors are: paths, `socket:[inode]`, `anon_inode:[eventpoll]`, ...
pub fn open_files(pid: u32) -> Vec<String> {
    let Ok(links) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    links
        .filter_map(|link| fs::read_link(link.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

/// Its children, those that have exited and are not yet collected among them.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// One field of `/proc/PID/stat`, numbered from 1 as in proc(5). The second field may contain
/// spaces, so only those after it can be asked for.
pub fn stat_field(pid: u32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let field = after_name.split_whitespace().nth(number.checked_sub(3)?)?;
    Some(field.to_owned())
}

/// Whether each thread of the process sleeps in some call.
pub fn is_asleep(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    let sleeps = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, state)| state.starts_with('S'))
    };
    tasks.filter_map(Result::ok).all(sleeps)
}

/// How often each thread of the process was switched away from, of its own will or not.
pub fn switches(pid: u32) -> Vec<(String, String)> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let count = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        let name = task.file_name().to_string_lossy().into_owned();
        Some((name, lines.collect::<Vec<_>>().join(", ")))
    };
    let mut all: Vec<_> = tasks.filter_map(|task| count(task.ok()?)).collect();
    all.sort();
    all
}

fn entries(directory: &str) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Waits for a process to end; kills it, and is `None`, if it does not.
pub fn exit_status(process: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let mut status = None;
    if !comes_true(patience, || {
        status = process.try_wait().ok().flatten();
        status.is_some()
    }) {
        let _ = process.kill();
        let _ = process.wait();
    }
    status
}

const COMPANION: &str = "SOCKETSERVER_TEST_COMPANION";

/// What this process was started for, if a test started it.
pub fn errand() -> Option<String> {
    std::env::var(COMPANION).ok()
}

static STARTING: RwLock<()> = RwLock::new(());

/// Starts a process.
#[track_caller]
pub fn start(command: &mut Command) -> Child {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    // `spawn` returns when the kernel has given the child its new memory, and the child may be kept
    // from running before it closes its copies: in ascending order (do_close_on_exec), so that one of a
    // high number goes last.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let last = rustix::io::fcntl_dupfd_cloexec(&writer, 900).unwrap();
    drop(writer);
    let child = command.spawn().unwrap();
    drop(last);
    let ended = reader.read(&mut [0]).unwrap();
    assert_eq!(ended, 0, "it has no copies any more");
    child
}

/// While this is held, no process is [started](start). Until it calls `execve(2)`, a new process has
/// a copy of every descriptor: what a test closes meanwhile is not closed.
pub fn nobody_starts() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// The test `name` once more, in a process of its own and with an errand.
pub struct Companion {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Companion {
    #[track_caller]
    pub fn start(name: &str, errand: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([name, "--exact", "--nocapture", "--test-threads=1"])
            .env(COMPANION, errand)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = start(&mut command);
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self {
            process,
            input,
            output,
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    #[track_caller]
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// What follows `prefix` on the next line that has it. The process ends rather than wait for
    /// ever, as every wait in it has a deadline.
    #[track_caller]
    pub fn hears(&mut self, prefix: &str) -> String {
        let mut all = String::new();
        loop {
            let begin = all.len();
            let n = self.output.read_line(&mut all).unwrap();
            assert_ne!(n, 0, "no {prefix:?} in:\n{all}");
            if let Some((_, rest)) = all[begin..].split_once(prefix) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Lets it come to its end, and expects it to have passed; returns what it printed.
    #[track_caller]
    pub fn passes(mut self) -> String {
        drop(self.input.take());
        let mut out = String::new();
        self.output.read_to_string(&mut out).unwrap();
        let status = exit_status(&mut self.process, PATIENCE);
        let passed = status.is_some_and(|status| status.success()) && out.contains("1 passed");
        assert!(passed, "{status:?}\n{out}");
        out
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs the test `name` in a process of its own.
///
/// For tests that count descriptors or change limits: whatever else runs at the same time would be
/// counted and limited as well.
#[track_caller]
pub fn alone(name: &str, body: impl FnOnce()) {
    if errand().is_some() {
        return body();
    }
    let out = Companion::start(name, "alone").passes();
    for notice in out.lines().filter(|line| line.contains("SKIPPED")) {
        // For the person who reads the output: a test that was skipped has proven nothing.
        let _ = writeln!(std::io::stdout(), "{notice}");
    }
}

/// The next line of this process's standard input; empty at its end.
pub fn told() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}
