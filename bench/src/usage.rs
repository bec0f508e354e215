//! Resource usage of a process and its children, from the kernel's counters.
//!
//! CPU time is user and system time together, from the process's CPU-time clock
//! (`clock_getcpuclockid(3)`). It is the unrounded source of `utime` and `stime` in `proc(5)`,
//! which have hundredths of a second. It includes threads that have ended.

use std::fs;
use std::path::Path;

use anyhow::Context;
use nix::time::ClockId;
use nix::unistd::Pid;
use rustix::param::clock_ticks_per_second;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU time of the process and of its living children, in nanoseconds.
    running: f64,
    /// CPU time of children that were waited for, in clock ticks: the kernel has nothing finer.
    reaped: f64,
    /// Voluntary context switches of the living threads: how often one went to sleep.
    sleeps: f64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = Stat::of(pid)?;
        let ticks = |field| {
            stat.field(field)
                .and_then(|ticks| ticks.parse::<f64>().ok())
        };
        let mut usage = Self {
            running: time(pid)?,
            // User and system time.
            reaped: [16, 17].into_iter().filter_map(ticks).sum(),
            sleeps: 0.0,
        };
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            usage.sleeps += sleeps(&task?.path());
        }
        for child in children(pid)? {
            // The child may have ended since the directory was read.
            usage.running += time(child).unwrap_or(0.0);
            usage.sleeps += sleeps(Path::new(&format!("/proc/{child}")));
        }
        Ok(usage)
    }

    /// Returns the CPU time since `before`, in nanoseconds.
    pub(crate) fn cpu_since(&self, before: &Self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a hundred or so")]
        let tick = 1e9 / clock_ticks_per_second() as f64;
        // The time of a child that has ended since then moves from `running` to `reaped`.
        self.running - before.running + (self.reaped - before.reaped) * tick
    }

    pub(crate) fn sleeps_since(&self, before: &Self) -> f64 {
        self.sleeps - before.sleeps
    }
}

/// Returns the CPU time of all threads since the process began, in nanoseconds.
fn time(pid: u32) -> anyhow::Result<f64> {
    let time = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(pid)?))?.now()?;
    #[expect(clippy::cast_precision_loss, reason = "exact for a hundred days")]
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

/// Returns the voluntary context switches of a task; 0 if the task has ended.
fn sleeps(directory: &Path) -> f64 {
    let status = fs::read_to_string(directory.join("status")).unwrap_or_default();
    let count = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0.0)
}

/// Returns the direct children of a process.
pub(crate) fn children(pid: u32) -> anyhow::Result<Vec<u32>> {
    let parent = pid.to_string();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if Stat::of(pid).is_ok_and(|stat| stat.field(4) == Some(&parent)) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// The contents of `/proc/PID/stat`.
struct Stat(String);

impl Stat {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name may contain any byte, including `)`.
        let (_, after_name) = text.rsplit_once(") ").context("no name")?;
        Ok(Self(after_name.into()))
    }

    /// Returns a field by its number in `proc(5)`; the state, after the name, has number 3.
    fn field(&self, number: usize) -> Option<&str> {
        self.0.split_whitespace().nth(number.checked_sub(3)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn ended_threads_are_counted() {
        let own = || Usage::of(std::process::id()).unwrap();
        let before = own();
        let busy = Duration::from_millis(50);
        let time = |id: ClockId| Duration::from(id.now().unwrap());
        let thread = move || {
            while time(ClockId::CLOCK_THREAD_CPUTIME_ID) < busy {}
        };
        std::thread::spawn(thread).join().unwrap();
        assert!(own().cpu_since(&before) > 49e6);
    }

    #[test]
    fn usage_of_process_and_children_is_read() {
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done";
        // CPU time of the process itself; of a child that is waited for; of a child that stays.
        for script in [
            busy.into(),
            format!("({busy})"),
            format!("exec 3<&0; ({busy}; read x <&3) & wait"),
        ] {
            let mut shell = Command::new("sh")
                .args(["-c", &format!("read x; {script}; read x")])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut input = shell.stdin.take().unwrap();
            let mut output = BufReader::new(shell.stdout.take().unwrap());
            let of_shell = || Usage::of(shell.id()).unwrap();
            let before = of_shell();
            writeln!(input).unwrap();
            output.read_line(&mut String::new()).unwrap();
            let end = Instant::now() + Duration::from_secs(20);
            while of_shell().cpu_since(&before) < 1e7 {
                assert!(Instant::now() < end, "{script}");
                std::thread::sleep(Duration::from_millis(1));
            }
            // A process that waits for input has made a voluntary context switch.
            while of_shell().sleeps_since(&before) < 1.0 {
                assert!(Instant::now() < end, "{script}");
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(input);
            shell.wait().unwrap();
        }
    }
}
