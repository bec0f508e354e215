//! A process per request.

mod fork;

pub(crate) use fork::{CUT, exit};

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

/// Serves each request in a process of its own.
///
/// * The serving process must have one thread; otherwise forking is refused with
///   [`ServeError::ThreadsRunning`]. The reason: a child gets a copy of every lock that other
///   threads hold at that moment, and nobody to release it.
/// * The child closes the listeners and what else belongs to the parent, runs the handler, and
///   exits with 0, with 1 after a failure, or with 64 or more if it has refused a client of a
///   trusted proxy (`Builder::proxy_protocol`). It disregards `SIGINT`, `SIGTERM`, `SIGQUIT` and
///   `SIGHUP`, which terminals and service managers send to the whole group: the parent decides
///   what they mean. Every other signal has its default action and is not blocked; what a child
///   executes finds all of them so, but `SIGHUP` ignored if the parent was started by nohup(1).
///   A child that the server cuts, or whose parent dies, is sent [`CUT`](Self::CUT).
/// * What handlers and the hook `handle_error` change in memory is lost with the child. The events
///   between [`Started`](crate::Event::Started) and [`Closing`](crate::Event::Closing) are told in
///   the child.
/// * Only own children are collected; one that the application made stays waitable.
///
/// The default limit is 40 children. Linux 5.4 or later is needed, for pidfds.
#[derive(Debug)]
pub struct Forking {
    max_children: usize,
    at_limit: OverloadPolicy,
    /// By process id. A place holds the child's pidfd.
    children: HashMap<u32, ChildSlot>,
    /// Lines of the log about children that had to be killed at once.
    given_up: Throttle,
}

impl Default for Forking {
    fn default() -> Self {
        Self {
            max_children: 40,
            at_limit: OverloadPolicy::Wait,
            children: HashMap::new(),
            given_up: Throttle::default(),
        }
    }
}

impl Forking {
    /// The number of the signal that ends a child which is cut, or whose parent has died:
    /// `SIGVTALRM`, which nobody sends to a whole group. A handler that has to clean up can catch it
    /// in the child; one that is not done a second after a drain's deadline is killed.
    pub const CUT: i32 = CUT.as_raw();

    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many children there may be at once; 0 is taken as 1.
    #[must_use]
    pub fn max_children(mut self, max: usize) -> Self {
        self.max_children = max.max(1);
        self
    }

    /// What happens to the next request.
    #[must_use]
    pub fn overload_policy(mut self, policy: OverloadPolicy) -> Self {
        self.at_limit = policy;
        self
    }

    /// Checks that the system has and allows what this model needs: pidfds. A server checks it when it
    /// begins to serve; a program can do so before it says that it serves.
    ///
    /// # Errors
    /// Returns [`ServeError::NoPidfds`] if the kernel is older than 5.4, or a filter of system calls
    /// refuses them, as the profiles of older container engines do. A system that is short of
    /// descriptors for the moment is no error.
    pub fn check_system() -> Result<(), ServeError> {
        let refused = |call| {
            move |errno: Errno| ServeError::NoPidfds {
                call,
                source: errno.into(),
            }
        };
        let own = match pidfd_open(getpid(), PidfdFlags::empty()) {
            // Out of descriptors: clients wait until there are some.
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => return Ok(()),
            opened => opened.map_err(refused("pidfd_open"))?,
        };
        // No child of its own: waitid(2), P_PIDFD.
        match waitid(
            WaitId::PidFd(own.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(_) | Err(Errno::CHILD) => {}
            Err(errno) => return Err(refused("waitid")(errno)),
        }
        // To what is no process no signal is sent: pidfd_send_signal(2), EBADF.
        let Ok(nothing) = eventfd(0, EventfdFlags::CLOEXEC) else {
            return Ok(());
        };
        match pidfd_send_signal(&nothing, Signal::KILL) {
            Ok(()) | Err(Errno::BADF) => Ok(()),
            Err(errno) => Err(refused("pidfd_send_signal")(errno)),
        }
    }

    /// Reaps a child that has exited; `false` if it has not.
    fn reap(&mut self, pid: u32) -> bool {
        let Some(fd) = self.children.get(&pid).and_then(ChildSlot::child) else {
            return true;
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let waited = waitid(WaitId::PidFd(fd.as_fd()), options);
        if matches!(waited, Ok(None) | Err(Errno::INTR)) {
            return false;
        }
        let Some(place) = self.children.remove(&pid) else {
            return true;
        };
        // If somebody else has collected it, that it ended is all there is to know.
        let status = waited.ok().flatten();
        match status.map(|status| (status.exit_status(), status.terminating_signal())) {
            None => place.end(EndReason::Completed),
            Some((Some(code), _)) => place.exited(code),
            Some((None, Some(signal))) => place.end(EndReason::Killed(signal)),
            Some((None, None)) => place.end(EndReason::Failed),
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
        // The descriptor that the pidfd will need, held open across the fork: with one thread,
        // nobody can take its number between closing it and opening the pidfd.
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
        let place = task.leave_to_child();
        let watched = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| ("pidfd_open(2) is refused", io::Error::from(errno)))
            .and_then(|pidfd| match children.watch(&pidfd, number(pid)) {
                Ok(()) => Ok(pidfd),
                Err(error) => Err(("it cannot be watched", io::Error::other(error))),
            });
        match watched {
            Ok(pidfd) => {
                place.served_by(pidfd);
                self.children.insert(number(pid), place);
            }
            Err((reason, error)) => {
                if let Some(left_out) = self.given_up.told(Instant::now()) {
                    tracing::warn!(
                        pid = number(pid),
                        peer = %place.info().peer(),
                        reason,
                        error = %crate::BoxError::from(error),
                        left_out,
                        "a child was killed: nothing would notice its end"
                    );
                }
                give_up(pid, place);
            }
        }
        Dispatch::Taken
    }

    fn check(&self) -> Result<(), ServeError> {
        let threads = fork::threads();
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
        // Closes the descriptors of the other children. The books that this changes are a copy.
        self.children.clear();
    }
}

/// Collects what has already exited. The others go on without being waited for.
impl Drop for Forking {
    fn drop(&mut self) {
        let pids: Vec<u32> = self.children.keys().copied().collect();
        for pid in pids {
            self.reap(pid);
        }
    }
}

/// A child whose end nobody would notice must not be: its place would never be free again.
fn give_up(pid: Pid, place: ChildSlot) {
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
    place.end(EndReason::Killed(Signal::KILL.as_raw()));
}
