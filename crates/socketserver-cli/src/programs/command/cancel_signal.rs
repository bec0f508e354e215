//! The signal that cuts a forked child: sent by the server, or by the kernel when that is gone.
//!
//! By default it ends the child at once, and leaves the command that it runs to itself. While one
//! runs, it is heard here instead.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Signal, getpid, kill_process};
use signal_hook::{flag, low_level::pipe};
use socketserver::Forking;

#[derive(Debug)]
pub(super) struct CancelSignal {
    arrivals: UnixStream,
    /// No command runs, and nothing has to be cleaned up.
    idle: Arc<AtomicBool>,
}

impl CancelSignal {
    /// From now on the signal is caught. To be called in the child.
    pub(super) fn catch() -> io::Result<Self> {
        let (arrivals, handler) = UnixStream::pair()?;
        arrivals.set_nonblocking(true)?;
        let idle = Arc::new(AtomicBool::new(true));
        // In this order: if nothing runs, the first of the two is the last.
        flag::register_conditional_default(Forking::CUT, idle.clone())?;
        pipe::register(Forking::CUT, handler)?;
        Ok(Self { arrivals, idle })
    }

    /// Readable once it has arrived while a command ran.
    pub(super) fn arrival(&self) -> BorrowedFd<'_> {
        self.arrivals.as_fd()
    }

    /// Runs something that listens to it.
    pub(super) fn heard_by<T>(&self, run: impl FnOnce() -> T) -> T {
        self.idle.store(false, Ordering::SeqCst);
        let done = run();
        self.idle.store(true, Ordering::SeqCst);
        done
    }

    /// Ends this process, as the signal does by default, if it has arrived meanwhile.
    pub(super) fn settle(&self) {
        if matches!((&self.arrivals).read(&mut [0]), Ok(1..)) {
            let _ = kill_process(getpid(), Signal::VTALARM);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_cut_that_comes_when_the_command_has_just_ended_is_a_cut() {
        const NAME: &str = concat!(
            module_path!(),
            "::a_cut_that_comes_when_the_command_has_just_ended_is_a_cut"
        );
        if std::env::var_os("CUT_ME").is_some() {
            let hangup = CancelSignal::catch().unwrap();
            hangup.heard_by(|| kill_process(getpid(), Signal::VTALARM).unwrap());
            hangup.settle();
            return;
        }
        let (_, name) = NAME.split_once("::").unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("CUT_ME", "")
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(Forking::CUT), "{status}");
    }
}
