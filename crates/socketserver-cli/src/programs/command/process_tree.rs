//! What a shell has started and put into groups of their own, such as timeout(1) does.
//!
//! The kernel lists the children of a process in `/proc/PID/task/TID/children`; that list is whole
//! only while the process stands still (proc(5)). Whoever has lost its parent is in no list that is
//! looked at, and what has a session of its own is meant to live on.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// How often a process is looked at that does not stand still yet.
const LOOKS: u32 = 20;

/// Kills the descendants of a group's leader that are in its session, and leaves itself stopped.
///
/// From the leaves up: a parent that stands still reaps nobody, so no number changes hands, and
/// none of them is woken by the end of another.
pub(super) fn kill(root: Pid) {
    let Some(Stat { session, .. }) = Stat::of(root) else {
        return;
    };
    // At once, as most of them are in its group: some may multiply faster than they are found.
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
        // It fails for what has exited, or runs as somebody else.
        let _ = kill_process(process, Signal::KILL);
    }
}

/// Makes a process stand still. What is inside of a fork comes out of it first.
fn stop(process: Pid) {
    if kill_process(process, Signal::STOP).is_err() {
        return;
    }
    for _ in 0..LOOKS {
        match Stat::of(process) {
            // Sleeping where no signal is heard, as who waits for a vfork(2): with the signal
            // pending, it begins no other.
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

/// proc_pid_stat(5)
struct Stat {
    state: char,
    parent: i32,
    session: i32,
}

impl Stat {
    fn of(process: Pid) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name before that may contain anything.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        Some(Self {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            session: fields.nth(1)?.parse().ok()?,
        })
    }
}
