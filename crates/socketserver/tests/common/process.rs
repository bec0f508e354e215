//! A view of a process from outside through proc(5), and tests that run in their own process.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use super::{TIMEOUT, becomes_true};

/// Returns the number of threads of a process.
pub fn threads(pid: u32) -> usize {
    entries(&format!("/proc/{pid}/task"))
}

/// Returns the number of open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    entries(&format!("/proc/{pid}/fd"))
}

/// Returns the targets of its descriptors: paths, `socket:[inode]`, `anon_inode:[eventpoll]`, ...
pub fn open_files(pid: u32) -> Vec<String> {
    let Ok(links) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    links
        .filter_map(|link| fs::read_link(link.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

/// Returns its children, including those that have exited and are not reaped.
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

/// Returns one field of `/proc/PID/stat`, numbered from 1 as in proc(5). Only fields after the
/// second work, because the second may contain spaces.
pub fn stat_field(pid: u32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let field = after_name.split_whitespace().nth(number.checked_sub(3)?)?;
    Some(field.to_owned())
}

/// Returns true if each thread of the process sleeps in a system call.
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

/// Returns the number of voluntary and involuntary context switches of each thread.
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

/// Waits for a process to end. Kills it and returns `None` if it does not end in time.
pub fn exit_status(process: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let mut status = None;
    if !becomes_true(timeout, || {
        status = process.try_wait().ok().flatten();
        status.is_some()
    }) {
        let _ = process.kill();
        let _ = process.wait();
    }
    status
}

const CHILD_ROLE: &str = "SOCKETSERVER_TEST_ROLE";

/// Returns the role of this process, if a test started it.
pub fn child_role() -> Option<String> {
    std::env::var(CHILD_ROLE).ok()
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

/// Prevents that a process is [started](start) while the guard is held. Until it calls `execve(2)`,
/// a new process has a copy of every descriptor, so a descriptor that a test closes would stay
/// open.
pub fn block_process_starts() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// The test `name`, run again in a process of its own and with a role.
pub struct TestProcess {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl TestProcess {
    #[track_caller]
    pub fn start(name: &str, role: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([name, "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD_ROLE, role)
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
    pub fn send_line(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Reads lines until one contains `prefix`, and returns the rest of that line. The read ends
    /// because every wait in the process has a timeout.
    #[track_caller]
    pub fn expect_line(&mut self, prefix: &str) -> String {
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

    /// Waits for the process to end, and asserts that its test has passed. Returns its output.
    #[track_caller]
    pub fn assert_passed(mut self) -> String {
        drop(self.input.take());
        let mut out = String::new();
        self.output.read_to_string(&mut out).unwrap();
        let status = exit_status(&mut self.process, TIMEOUT);
        let passed = status.is_some_and(|status| status.success()) && out.contains("1 passed");
        assert!(passed, "{status:?}\n{out}");
        out
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs the test `name` in a process of its own.
///
/// Use it for tests that count descriptors or change limits, because other tests in the process
/// would be counted and limited as well.
#[track_caller]
pub fn in_own_process(name: &str, body: impl FnOnce()) {
    if child_role().is_some() {
        return body();
    }
    let out = TestProcess::start(name, "in_own_process").assert_passed();
    for notice in out.lines().filter(|line| line.contains("SKIPPED")) {
        // Shows the notice to the reader of the output, because a skipped test proves nothing.
        let _ = writeln!(std::io::stdout(), "{notice}");
    }
}

/// Returns the next line of standard input; empty at its end.
pub fn read_stdin_line() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}
