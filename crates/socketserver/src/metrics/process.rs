//! Metrics of a process, from proc(5). Their names are those of the Prometheus [client
//! libraries](https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics).

use std::fs;

use rustix::param::clock_ticks_per_second;

/// The metrics of a process. A value is `None` if it cannot be read, for example because the
/// process has no free descriptor or no longer exists.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) open_fds: Option<f64>,
    pub(super) max_fds: Option<f64>,
    pub(super) threads: Option<f64>,
    pub(super) resident_bytes: Option<f64>,
    pub(super) virtual_bytes: Option<f64>,
    pub(super) started: Option<f64>,
}

impl Process {
    /// Reads the metrics of a process, or of the current process.
    pub(super) fn read(pid: Option<u32>) -> Self {
        let directory = match pid {
            Some(pid) => format!("/proc/{pid}"),
            None => "/proc/self".into(),
        };
        let read = |file: &str| fs::read_to_string(format!("{directory}/{file}"));
        let stat = read("stat").unwrap_or_default();
        // The process name is in parentheses and may contain any character. The state after the
        // name is field 3.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, after)| after.split_whitespace().collect())
            .unwrap_or_default();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let ticks = |ticks: f64| ticks / number(clock_ticks_per_second());
        let status = read("status").unwrap_or_default();
        let limits = read("limits").unwrap_or_default();
        Self {
            cpu_seconds: field(14)
                .zip(field(15))
                .map(|(user, system)| ticks(user + system)),
            started: field(22)
                .zip(boot_time())
                .map(|(start, boot_time)| boot_time + ticks(start)),
            threads: field(20),
            virtual_bytes: field(23),
            resident_bytes: labelled(&status, "VmRSS:").map(|kib| kib * 1024.0),
            max_fds: labelled(&limits, "Max open files"),
            open_fds: fs::read_dir(format!("{directory}/fd"))
                .ok()
                .map(|entries| number(entries.count() as u64)),
        }
    }
}

/// Returns the first word after a label at the beginning of a line, as a number.
fn labelled(text: &str, label: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(f64::INFINITY),
        word => word.parse().ok(),
    }
}

/// Returns the boot time of the system.
fn boot_time() -> Option<f64> {
    labelled(&fs::read_to_string("/proc/stat").ok()?, "btime")
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn current_process_has_all_metrics() {
        let Process {
            cpu_seconds,
            open_fds,
            max_fds,
            threads,
            resident_bytes,
            virtual_bytes,
            started,
        } = Process::read(None);
        assert!(cpu_seconds.is_some());
        assert!(open_fds >= Some(3.0) && open_fds <= max_fds);
        assert!(threads >= Some(1.0));
        assert!(resident_bytes > Some(100_000.0) && resident_bytes < virtual_bytes);
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map(|since| since.as_secs_f64());
        let age = now.unwrap_or_default() - started.unwrap_or_default();
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }

    #[test]
    fn process_that_does_not_exist_has_no_metrics() {
        let gone = Process::read(Some(u32::MAX));
        assert!(gone.open_fds.is_none() && gone.started.is_none() && gone.max_fds.is_none());
    }
}
