//! This program in another role: started, pinned to a core, spoken with, and seen from outside,
//! through proc(5).

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use rustix::param::clock_ticks_per_second;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
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
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "it has ended");
        Ok(line.trim().into())
    }

    pub(crate) fn ask(&mut self, question: &str) -> anyhow::Result<String> {
        writeln!(self.stdin, "{question}")?;
        self.line()
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(&format!("/proc/{}", self.child.id()))
    }

    /// In KiB: what belongs to this process alone.
    pub(crate) fn private_memory(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(path)?;
        let private = text.lines().filter(|line| line.starts_with("Private_"));
        let sizes = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        Ok(sizes.sum())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the kernel has counted for a process so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Nanoseconds on a core, of the threads that are there.
    fine: f64,
    /// The same of all threads, those that have ended among them, in ticks.
    coarse: f64,
    /// How often a thread went to sleep because it had nothing to do.
    sleeps: f64,
}

impl Usage {
    fn of(directory: &str) -> anyhow::Result<Self> {
        let mut usage = Self::default();
        for task in fs::read_dir(format!("{directory}/task"))? {
            // One that ends meanwhile has no files any more.
            usage.add_thread(&task?.path());
        }
        let stat = fs::read_to_string(format!("{directory}/stat"))?;
        // Of user and of system: the fields 14 and 15, where the state after the name is the third.
        let (_, after_name) = stat.rsplit_once(") ").context("no name")?;
        let times = after_name.split_whitespace().skip(14 - 3).take(2);
        usage.coarse = times.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
        Ok(usage)
    }

    fn add_thread(&mut self, directory: &Path) {
        let read = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0.0);
        self.fine += number(read("schedstat").split_whitespace().next());
        let status = read("status");
        let sleeps = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        self.sleeps += number(sleeps.map(str::trim));
    }

    /// Nanoseconds on a core since then.
    pub(crate) fn cpu_since(&self, before: &Self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a hundred or so")]
        let tick = 1e9 / clock_ticks_per_second() as f64;
        let (fine, coarse) = (
            self.fine - before.fine,
            (self.coarse - before.coarse) * tick,
        );
        // The two differ by rounding, or else because threads have ended: then only the coarse one
        // knows of them. The kernel rounds down user and system time, before and after.
        if (coarse - fine).abs() <= 3.0 * tick {
            fine
        } else {
            coarse
        }
    }

    pub(crate) fn sleeps_since(&self, before: &Self) -> f64 {
        self.sleeps - before.sleeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn tick() -> f64 {
        1e9 / f64::from(u32::try_from(clock_ticks_per_second()).unwrap())
    }

    #[test]
    fn the_fine_clock_is_taken_unless_threads_have_ended() {
        let before = Usage {
            fine: 2e9,
            coarse: 1e9 / tick(),
            sleeps: 1.0,
        };
        let since = |fine, coarse| {
            let now = Usage {
                fine: before.fine + fine,
                coarse: before.coarse + coarse / tick(),
                sleeps: 5.0,
            };
            now.cpu_since(&before)
        };
        let close = |left: f64, right: f64| (left - right).abs() < 1.0;
        assert!(close(since(1.234e9, 1.23e9), 1.234e9));
        assert!(close(since(0.234e9, 1.23e9), 1.23e9), "one took it away");
        assert!(close(since(-1e9, 0.5e9), 0.5e9));
    }

    #[test]
    fn what_a_process_uses_is_read() {
        let mut shell = Command::new("sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = shell.stdin.take().unwrap();
        let mut output = BufReader::new(shell.stdout.take().unwrap());
        let of_shell = || Usage::of(&format!("/proc/{}", shell.id())).unwrap();
        let before = of_shell();
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done";
        writeln!(input, "{busy}").unwrap();
        output.read_line(&mut String::new()).unwrap();
        let after = of_shell();
        assert!(after.coarse > before.coarse);
        assert!(after.cpu_since(&before) > 1e6);
        // Whoever has gone to sleep for want of a line was switched away from of its own will.
        let end = Instant::now() + Duration::from_secs(20);
        while of_shell().sleeps_since(&before) < 1.0 {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(input);
        shell.wait().unwrap();
    }
}
