//! A process seen from outside, through proc(5), and tests that have one to themselves.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
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

const ALONE: &str = "SOCKETSERVER_TEST_ALONE";

/// Runs the test `name` in a process of its own, and on its only thread besides the harness's.
///
/// For tests that count descriptors, change limits or measure processor time: whatever else runs
/// at the same time would be counted as well.
#[track_caller]
pub fn alone(name: &str, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some_and(|running| running == name) {
        return body();
    }
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = [
        collect(process.stdout.take()),
        collect(process.stderr.take()),
    ];
    let status = exit_status(&mut process, 3 * PATIENCE);
    let [out, err] = output.map(|reader| reader.join().unwrap_or_default());
    assert!(
        status.is_some_and(|status| status.success()) && out.contains("1 passed"),
        "{name}, alone: {status:?}\n{out}\n{err}"
    );
    print!("{}", notices(&out));
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// What the inner process wanted to be known.
fn notices(output: &str) -> String {
    let lines = output.lines().filter(|line| line.contains("SKIPPED"));
    lines.map(|line| format!("{line}\n")).collect()
}
