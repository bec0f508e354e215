//! The descendants of a shell in other process groups, such as those that timeout(1) starts.
//!
//! The kernel lists the children of a process in `/proc/PID/task/TID/children`. The list is
//! complete only while the process is stopped (proc(5)). An orphan is in none of the lists that are
//! read here. A process with its own session is meant to survive.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Maximum number of checks whether a process has stopped, 1 ms apart.
const LOOKS: u32 = 20;

/// Kills the descendants of a group's leader that are in its session, and leaves the leader
/// stopped.
///
/// The kills go from the leaves up. A stopped parent does not reap its children, so the kernel
/// cannot reuse a PID, and the end of one process does not wake another.
pub(super) fn kill(root: Pid) {
    let Some(Stat { session, .. }) = Stat::of(root) else {
        return;
    };
    // Most descendants are in the group. One signal stops them all, because some may fork faster
    // than the search below finds them.
    let _ = kill_process_group(root, Signal::STOP);
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        stop(parent);
        let is_ours = |child: &Pid| {
            Stat::of(*child)
                .is_some_and(|stat| stat.parent == parent.as_raw_pid() && stat.session == session)
        };
        found.extend(children(parent).into_iter().filter(is_ours));
    }
    for &process in found[1..].iter().rev() {
        // The kill fails if the process has exited or runs as another user.
        let _ = kill_process(process, Signal::KILL);
    }
}

/// Stops a process and waits until it has stopped. A process inside of fork(2) returns from it
/// first.
fn stop(process: Pid) {
    if kill_process(process, Signal::STOP).is_err() {
        return;
    }
    for _ in 0..LOOKS {
        match Stat::of(process) {
            // The process sleeps where signals do not interrupt it, such as the parent in vfork(2).
            // While the signal is pending, it starts no other child.
            Some(Stat { state, .. }) if !"TtZXD".contains(state) => {}
            _ => return,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn children(parent: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .map(|thread| thread.path().join("children"));
    lists
        .flat_map(|list| numbers(&fs::read_to_string(list).unwrap_or_default()))
        .collect()
}

fn numbers(list: &str) -> Vec<Pid> {
    let words = list.split_ascii_whitespace();
    words
        .filter_map(|word| Pid::from_raw(word.parse().ok()?))
        .collect()
}

/// Fields of `/proc/PID/stat`: proc_pid_stat(5).
struct Stat {
    state: char,
    parent: i32,
    session: i32,
}

impl Stat {
    fn of(process: Pid) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The process name before the last `) ` may contain any character.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        Some(Self {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            session: fields.nth(1)?.parse().ok()?,
        })
    }
}
