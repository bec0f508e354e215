//! The model with a process per request.

mod fork;

pub(crate) use fork::{CANCEL_SIGNAL, exit};

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, kill_process, pidfd_open,
    pidfd_send_signal, waitid,
};

use super::{Concurrency, Dispatch, OverloadPolicy};
use crate::ServeError;
use crate::event::{EndReason, Throttle};
use crate::process::number;
use crate::server::{ChildSlot, ChildWatcher, Task};

/// Runs each request in a process of its own.
///
/// * The serving process must have exactly one thread. Otherwise the server returns
///   [`ServeError::ThreadsRunning`], because a child inherits the locks that other threads hold. No
///   thread in the child releases these locks.
/// * The child closes the listeners and the other resources of the parent, runs the handler, and
///   exits. The exit code is 0 on success, 1 after an error, and 64 or more if the child has
///   rejected a client of a trusted proxy (`Builder::proxy_protocol`).
/// * The child ignores `SIGINT`, `SIGTERM`, `SIGQUIT` and `SIGHUP`, which terminals and service
///   managers send to the whole group. The parent acts on these signals. Every other signal has its
///   default action and is not blocked. A program that the child executes has default actions for
///   all signals, except that `SIGHUP` is ignored if the parent was started by nohup(1). A child
///   receives [`CANCEL_SIGNAL`](Self::CANCEL_SIGNAL) if the server cancels its request or the parent dies.
/// * Changes that handlers and the hook `handle_error` make in memory are lost with the child. The
///   events between [`Started`](crate::Event::Started) and [`Closing`](crate::Event::Closing) are
///   emitted in the child.
/// * The server reaps only its own children. The application can still wait for children that it
///   created itself.
///
/// The default limit is 40 children. This model requires Linux 5.4 or later, for pidfds.
#[derive(Debug)]
pub struct Forking {
    max_children: usize,
    at_limit: OverloadPolicy,
    /// The children by process id. Each slot holds the child's pidfd.
    children: HashMap<u32, ChildSlot>,
    /// Limits the log lines about children that are killed at once.
    kill_log: Throttle,
}

impl Default for Forking {
    fn default() -> Self {
        Self {
            max_children: 40,
            at_limit: OverloadPolicy::Wait,
            children: HashMap::new(),
            kill_log: Throttle::default(),
        }
    }
}

impl Forking {
    /// The number of the signal that ends a child when its request is cancelled or its parent has
    /// died: `SIGVTALRM`, which no tool sends to a whole process group. A handler that needs to
    /// clean up can catch the signal in the child. A child that still runs 1 s after the drain
    /// deadline is killed.
    pub const CANCEL_SIGNAL: i32 = CANCEL_SIGNAL.as_raw();

    /// Creates the model with its default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of children. Defaults to 40; 0 counts as 1.
    #[must_use]
    pub fn max_children(mut self, max: usize) -> Self {
        self.max_children = max.max(1);
        self
    }

    /// Sets the policy for a request beyond the limit. Defaults to [`OverloadPolicy::Wait`].
    #[must_use]
    pub fn overload_policy(mut self, policy: OverloadPolicy) -> Self {
        self.at_limit = policy;
        self
    }

    /// Checks that the system supports and allows pidfds, which this model requires. A server runs
    /// this check when it begins to serve. A program can run the check before it reports that it is
    /// ready.
    ///
    /// # Errors
    /// Returns [`ServeError::NoPidfds`] if the kernel is older than 5.4, or a system call filter
    /// rejects pidfds, as the profiles of older container engines do. A temporary lack of
    /// descriptors is not an error.
    pub fn check_system() -> Result<(), ServeError> {
        let unavailable = |call| {
            move |errno: Errno| ServeError::NoPidfds {
                call,
                source: errno.into(),
            }
        };
        let own = match pidfd_open(getpid(), PidfdFlags::empty()) {
            // Out of descriptors: clients wait until descriptors are available.
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => return Ok(()),
            opened => opened.map_err(unavailable("pidfd_open"))?,
        };
        // The process is not its own child, so the expected error is ECHILD: waitid(2), P_PIDFD.
        match waitid(
            WaitId::PidFd(own.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(_) | Err(Errno::CHILD) => {}
            Err(errno) => return Err(unavailable("waitid")(errno)),
        }
        // A descriptor that is not a pidfd fails with EBADF, and no signal is sent:
        // pidfd_send_signal(2).
        let Ok(not_a_pidfd) = eventfd(0, EventfdFlags::CLOEXEC) else {
            return Ok(());
        };
        match pidfd_send_signal(&not_a_pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::BADF) => Ok(()),
            Err(errno) => Err(unavailable("pidfd_send_signal")(errno)),
        }
    }

    /// Reaps a child that has exited. Returns `false` if the child is still running.
    fn reap(&mut self, pid: u32) -> bool {
        let Some(fd) = self.children.get(&pid).and_then(ChildSlot::child) else {
            return true;
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let waited = waitid(WaitId::PidFd(fd.as_fd()), options);
        if matches!(waited, Ok(None) | Err(Errno::INTR)) {
            return false;
        }
        let Some(slot) = self.children.remove(&pid) else {
            return true;
        };
        // If other code has reaped the child, its exit status is unknown.
        let status = waited.ok().flatten();
        match status.map(|status| (status.exit_status(), status.terminating_signal())) {
            None => slot.end(EndReason::Completed),
            Some((Some(code), _)) => slot.exited(code),
            Some((None, Some(signal))) => slot.end(EndReason::Killed(signal)),
            Some((None, None)) => slot.end(EndReason::Failed),
        }
        true
    }
}

impl Concurrency for Forking {
    const NAME: &'static str = "forking";
    const FORKS: bool = true;

    fn limit(&self) -> (usize, OverloadPolicy) {
        (self.max_children, self.at_limit)
    }

    fn process_request<J: Task>(&mut self, task: J, children: &ChildWatcher<'_>) -> Dispatch<J> {
        // Reserves the descriptor that the pidfd needs across the fork. With one thread, no other
        // code can take its number between closing it and opening the pidfd.
        let placeholder = match eventfd(0, EventfdFlags::CLOEXEC) {
            Ok(fd) => fd,
            Err(errno) => return Dispatch::NoRoom(task, errno.into()),
        };
        task.prepare_fork();
        let pid = match fork::fork() {
            Ok(fork::Side::Child) => return Dispatch::InChild(task),
            Ok(fork::Side::Parent(pid)) => pid,
            Err(error) => return Dispatch::NoRoom(task, error),
        };
        drop(placeholder);
        let slot = task.leave_to_child();
        let watched = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| ("pidfd_open(2) is refused", io::Error::from(errno)))
            .and_then(|pidfd| match children.watch(&pidfd, number(pid)) {
                Ok(()) => Ok(pidfd),
                Err(error) => Err(("it cannot be watched", io::Error::other(error))),
            });
        match watched {
            Ok(pidfd) => {
                slot.served_by(pidfd);
                self.children.insert(number(pid), slot);
            }
            Err((reason, error)) => {
                if let Some(left_out) = self.kill_log.told(Instant::now()) {
                    tracing::warn!(
                        pid = number(pid),
                        peer = %slot.info().peer(),
                        reason,
                        error = %crate::BoxError::from(error),
                        left_out,
                        "a child was killed: nothing would notice its end"
                    );
                }
                kill_and_reap(pid, slot);
            }
        }
        Dispatch::Taken
    }

    fn check(&self) -> Result<(), ServeError> {
        let threads = fork::thread_count();
        if threads != 1 {
            return Err(ServeError::ThreadsRunning { threads });
        }
        Self::check_system()
    }

    fn watch_children(&mut self, children: &ChildWatcher<'_>) -> Result<(), ServeError> {
        for (pid, child) in &self.children {
            if let Some(fd) = child.child() {
                children.watch(fd, *pid)?;
            }
        }
        Ok(())
    }

    fn collect_child(&mut self, child: u32, children: &ChildWatcher<'_>) {
        if let Some(fd) = self.children.get(&child).and_then(ChildSlot::child) {
            children.forget(fd);
        }
        if !self.reap(child)
            && let Some(fd) = self.children.get(&child).and_then(ChildSlot::child)
        {
            let _ = children.watch(fd, child);
        }
    }

    fn kill_children(&mut self) -> bool {
        for pidfd in self.children.values().filter_map(ChildSlot::child) {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        !self.children.is_empty()
    }

    fn abandon_in_child(&mut self) {
        // Closes the pidfds of the other children. The map is a copy of the parent's.
        self.children.clear();
    }
}

/// Reaps the children that have already exited. The other children continue to run unattended.
impl Drop for Forking {
    fn drop(&mut self) {
        let pids: Vec<u32> = self.children.keys().copied().collect();
        for pid in pids {
            self.reap(pid);
        }
    }
}

/// Kills and reaps a child whose exit cannot be observed. Otherwise its slot would never become
/// free.
fn kill_and_reap(pid: Pid, slot: ChildSlot) {
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
    slot.end(EndReason::Killed(Signal::KILL.as_raw()));
}
