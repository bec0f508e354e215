//! Runs this program in another role, in a child process pinned to one core.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, set_parent_process_death_signal,
};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::usage::{Usage, children};

/// Time limit for a line of the child. Fifteen thousand connections take less.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// Prefix of a child's last line when it fails; the reason follows.
pub(crate) const ERROR_PREFIX: &str = "error: ";

/// A child process. Dropping it kills the process.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// Asks the kernel to kill this process when its parent ends, however it ends. If the parent has
/// ended before this call, the next write to the pipe fails, which ends this process too.
pub(crate) fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

impl Process {
    pub(crate) fn start(core: usize, args: &[impl AsRef<OsStr>]) -> anyhow::Result<Self> {
        // The child inherits the affinity of this thread.
        let mut cores = CpuSet::new();
        cores.set(core);
        sched_setaffinity(None, &cores)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// Returns the next line of the child's output.
    pub(crate) fn read_line(&mut self) -> anyhow::Result<String> {
        if self.stdout.buffer().is_empty() {
            let readable = wait_readable(self.stdout.get_ref(), REPLY_TIMEOUT)?;
            ensure!(readable, "the process printed nothing for a minute");
        }
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            bail!("the process ended: {}", self.child.wait()?);
        }
        if let Some(reason) = line.strip_prefix(ERROR_PREFIX) {
            bail!("{}", reason.trim());
        }
        Ok(line.trim().into())
    }

    pub(crate) fn request(&mut self, line: &str) -> anyhow::Result<String> {
        writeln!(self.stdin, "{line}").context("the process no longer reads its input")?;
        self.read_line()
    }

    /// Returns the resource usage of this process and its children.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.child.id())
    }

    /// Returns the private (unshared) memory of this process and its children, in KiB.
    pub(crate) fn private_memory(&self) -> anyhow::Result<u64> {
        let mut all = private_memory(self.child.id())?;
        for child in children(self.child.id())? {
            all += private_memory(child).unwrap_or(0);
        }
        Ok(all)
    }

    /// Sends SIGTERM and waits up to `timeout` for the process to end.
    fn terminate(&self, timeout: Duration) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let end = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let (Some(pid), Some(end)) = (pid, end) {
            let _ = kill_process(pid, Signal::TERM);
            let _ = wait_readable(&end, timeout);
        }
    }

    /// Sends SIGTERM and returns how long the process took to end.
    pub(crate) fn stop(mut self) -> anyhow::Result<Duration> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("no process")?;
        let end = pidfd_open(pid, PidfdFlags::empty())?;
        let begin = Instant::now();
        kill_process(pid, Signal::TERM)?;
        let ended = wait_readable(&end, Duration::from_secs(10))?;
        let elapsed = begin.elapsed();
        ensure!(ended, "the process did not stop within ten seconds");
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "the process did not stop cleanly: {status}"
        );
        Ok(elapsed)
    }
}

/// Returns true if `fd` becomes readable in time.
fn wait_readable(fd: &impl AsFd, timeout: Duration) -> anyhow::Result<bool> {
    let timeout = Timespec::try_from(timeout)?;
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? > 0)
}

fn private_memory(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let sizes = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(sizes.sum())
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut children_left = Vec::new();
        if matches!(self.child.try_wait(), Ok(None)) {
            children_left = children(self.child.id()).unwrap_or_default();
        }
        if !children_left.is_empty() {
            // A process that is killed cannot end its children: nginx's worker would keep running.
            self.terminate(Duration::from_secs(1));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in children_left
            .into_iter()
            .filter_map(|pid| i32::try_from(pid).ok())
        {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell script in place of this program.
    fn shell(script: &str) -> Process {
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Process {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    #[test]
    fn lines_are_read_in_order_and_the_end_is_an_error() {
        let mut process = shell("echo one; echo two; exit 3");
        assert_eq!(process.read_line().unwrap(), "one");
        assert_eq!(process.read_line().unwrap(), "two");
        let error = process.read_line().unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        let error = shell("echo error: reason")
            .read_line()
            .unwrap_err()
            .to_string();
        assert_eq!(error, "reason");
    }

    #[test]
    fn children_end_with_the_process() {
        // The first script ends its child, the second one leaves it behind.
        for trap in ["trap 'kill $!; exit' TERM", "trap '' TERM"] {
            let mut shell = shell(&format!("{trap}; sleep 60 & echo $!; wait; wait"));
            let child = shell.read_line().unwrap();
            drop(shell);
            // After the kill, init needs a moment to reap the orphaned child.
            let end = Instant::now() + Duration::from_secs(20);
            while fs::read_to_string(format!("/proc/{child}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z "))
            {
                assert!(Instant::now() < end, "{trap}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn clean_stop_is_timed_and_any_other_end_is_an_error() {
        let mut orderly = shell("trap 'exit 0' TERM; echo ready; read line");
        orderly.read_line().unwrap();
        assert!(orderly.stop().unwrap() < Duration::from_secs(10));
        let mut other = shell("echo ready; read line");
        other.read_line().unwrap();
        let error = other.stop().unwrap_err().to_string();
        assert!(error.contains("signal: 15"), "{error}");
    }
}
