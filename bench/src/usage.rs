//! What the kernel has counted for a process and for those that it has made, read from proc(5).

use std::fs;
use std::path::Path;

use anyhow::Context;
use rustix::param::clock_ticks_per_second;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Nanoseconds on a core, of the process's threads that are there.
    fine: f64,
    /// The same of all its threads, those that have ended among them, in ticks.
    coarse: f64,
    /// Nanoseconds on a core, of its children that are there. A child has one thread here, so that
    /// none has ended.
    children: f64,
    /// The same of those that have ended, in ticks.
    reaped: f64,
    /// How often a thread went to sleep because it had nothing to do.
    sleeps: f64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let mut usage = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let (time, sleeps) = thread(&task?.path());
            usage.fine += time;
            usage.sleeps += sleeps;
        }
        for child in children(pid)? {
            let (time, sleeps) = thread(Path::new(&format!("/proc/{child}")));
            usage.children += time;
            usage.sleeps += sleeps;
        }
        // Of user and of system, and the same of children that were waited for.
        let stat = Stat::of(pid)?;
        let ticks = |field| {
            stat.field(field)
                .and_then(|ticks| ticks.parse::<f64>().ok())
        };
        let sum = |fields: [usize; 2]| fields.into_iter().filter_map(ticks).sum::<f64>();
        usage.coarse = sum([14, 15]);
        usage.reaped = sum([16, 17]);
        Ok(usage)
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
        let own = if (coarse - fine).abs() <= 3.0 * tick {
            fine
        } else {
            coarse
        };
        // A child that has ended meanwhile takes all of its time from here to there.
        let (children, reaped) = (
            self.children - before.children,
            (self.reaped - before.reaped) * tick,
        );
        own + children + reaped
    }

    pub(crate) fn sleeps_since(&self, before: &Self) -> f64 {
        self.sleeps - before.sleeps
    }
}

/// Time in nanoseconds, and sleeps. One that ends meanwhile has no files any more.
fn thread(directory: &Path) -> (f64, f64) {
    let read = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let time = number(read("schedstat").split_whitespace().next());
    let status = read("status");
    let sleeps = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    (time, number(sleeps.map(str::trim)))
}

/// The processes that this one has made, and not those that these have made.
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

/// `/proc/PID/stat`.
struct Stat(String);

impl Stat {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name may have anything in it.
        let (_, after_name) = text.rsplit_once(") ").context("no name")?;
        Ok(Self(after_name.into()))
    }

    /// By its number in proc(5): the state, after the name, is the third.
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

    fn tick() -> f64 {
        1e9 / f64::from(u32::try_from(clock_ticks_per_second()).unwrap())
    }

    #[test]
    fn the_fine_clock_is_taken_unless_threads_have_ended() {
        let before = Usage {
            fine: 2e9,
            coarse: 1e9 / tick(),
            sleeps: 1.0,
            ..Usage::default()
        };
        let since = |fine, coarse| {
            let now = Usage {
                fine: before.fine + fine,
                coarse: before.coarse + coarse / tick(),
                sleeps: 5.0,
                ..Usage::default()
            };
            now.cpu_since(&before)
        };
        let close = |left: f64, right: f64| (left - right).abs() < 1.0;
        assert!(close(since(1.234e9, 1.23e9), 1.234e9));
        assert!(close(since(0.234e9, 1.23e9), 1.23e9), "one took it away");
        assert!(close(since(-1e9, 0.5e9), 0.5e9));
    }

    #[test]
    fn what_a_process_and_its_children_use_is_read() {
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done";
        // One for itself; one in a child that it waits for; one in a child that stays.
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
            // Whoever has gone to sleep for want of a line was switched away from of its own will.
            while of_shell().sleeps_since(&before) < 1.0 {
                assert!(Instant::now() < end, "{script}");
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(input);
            shell.wait().unwrap();
        }
    }
}
