//! This program in another role: started, pinned to a core, spoken with, and ended.

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

/// How long a process may take to say something: fifteen thousand connections are made in less.
const PATIENCE: Duration = Duration::from_secs(60);

/// A line that begins so is the last one, and says why.
pub(crate) const ERROR: &str = "error: ";

/// Killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// From now on the kernel kills this process when the one that has started it ends, however it
/// does. One that has ended before does not read what this one is about to say, which ends it, too.
pub(crate) fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

impl Process {
    pub(crate) fn start(core: usize, args: &[impl AsRef<OsStr>]) -> anyhow::Result<Self> {
        // What a child inherits from this thread.
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

    /// The next line that it says.
    pub(crate) fn line(&mut self) -> anyhow::Result<String> {
        if self.stdout.buffer().is_empty() {
            let spoke = wait_for(self.stdout.get_ref(), PATIENCE)?;
            ensure!(spoke, "it has said nothing for a minute");
        }
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            bail!("it has ended: {}", self.child.wait()?);
        }
        if let Some(why) = line.strip_prefix(ERROR) {
            bail!("{}", why.trim());
        }
        Ok(line.trim().into())
    }

    pub(crate) fn ask(&mut self, question: &str) -> anyhow::Result<String> {
        writeln!(self.stdin, "{question}").context("it does not listen any more")?;
        self.line()
    }

    /// Of this process and those that it has made.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.child.id())
    }

    /// In KiB: what belongs to this process, and to those that it has made, and is not shared.
    pub(crate) fn private_memory(&self) -> anyhow::Result<u64> {
        let mut all = private_memory(self.child.id())?;
        for child in children(self.child.id())? {
            all += private_memory(child).unwrap_or(0);
        }
        Ok(all)
    }

    /// Asks it to end, and waits for that, but not for longer.
    fn end_in_order(&self, patience: Duration) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let end = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let (Some(pid), Some(end)) = (pid, end) {
            let _ = kill_process(pid, Signal::TERM);
            let _ = wait_for(&end, patience);
        }
    }

    /// Asks it to end; how long that took.
    pub(crate) fn stop(mut self) -> anyhow::Result<Duration> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("no process")?;
        let end = pidfd_open(pid, PidfdFlags::empty())?;
        let begin = Instant::now();
        kill_process(pid, Signal::TERM)?;
        let ended = wait_for(&end, Duration::from_secs(10))?;
        let elapsed = begin.elapsed();
        ensure!(ended, "it has not stopped for ten seconds");
        let status = self.child.wait()?;
        ensure!(status.success(), "it has not stopped in order: {status}");
        Ok(elapsed)
    }
}

/// Whether something came in time.
fn wait_for(fd: &impl AsFd, patience: Duration) -> anyhow::Result<bool> {
    let timeout = Timespec::try_from(patience)?;
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
        let mut left = Vec::new();
        if matches!(self.child.try_wait(), Ok(None)) {
            left = children(self.child.id()).unwrap_or_default();
        }
        if !left.is_empty() {
            // Who is killed cannot end what it has made: nginx's worker would serve on for ever.
            self.end_in_order(Duration::from_secs(1));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in left.into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something else in the place of this program.
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
    fn lines_come_one_by_one_and_the_end_is_an_error() {
        let mut process = shell("echo one; echo two; exit 3");
        assert_eq!(process.line().unwrap(), "one");
        assert_eq!(process.line().unwrap(), "two");
        let error = process.line().unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        let error = shell("echo error: why").line().unwrap_err().to_string();
        assert_eq!(error, "why");
    }

    #[test]
    fn what_it_has_made_ends_with_it() {
        // One that ends its child, and one that leaves it behind.
        for trap in ["trap 'kill $!; exit' TERM", "trap '' TERM"] {
            let mut shell = shell(&format!("{trap}; sleep 60 & echo $!; wait; wait"));
            let child = shell.line().unwrap();
            drop(shell);
            // Who ends last takes a while to be gone, and then there is nobody but init to see it off.
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
    fn a_stop_in_order_is_timed_and_any_other_is_an_error() {
        let mut orderly = shell("trap 'exit 0' TERM; echo ready; read line");
        orderly.line().unwrap();
        assert!(orderly.stop().unwrap() < Duration::from_secs(10));
        let mut other = shell("echo ready; read line");
        other.line().unwrap();
        let error = other.stop().unwrap_err().to_string();
        assert!(error.contains("signal: 15"), "{error}");
    }
}
