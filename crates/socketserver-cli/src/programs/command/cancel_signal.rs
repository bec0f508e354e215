//! The signal that cancels a forked child. The server sends it, or the kernel after the server's
//! end.
//!
//! By default the signal ends the child at once, and the child's command would continue to run.
//! While a command runs, this handler receives the signal instead, so that the child can kill the
//! command first.

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
    /// True while no command runs, so that nothing has to be cleaned up.
    idle: Arc<AtomicBool>,
}

impl CancelSignal {
    /// Installs the handler. Has to be called in the child.
    pub(super) fn catch() -> io::Result<Self> {
        let (arrivals, handler) = UnixStream::pair()?;
        arrivals.set_nonblocking(true)?;
        let idle = Arc::new(AtomicBool::new(true));
        // The order matters: while no command runs, the first handler ends the process.
        flag::register_conditional_default(Forking::CANCEL_SIGNAL, idle.clone())?;
        pipe::register(Forking::CANCEL_SIGNAL, handler)?;
        Ok(Self { arrivals, idle })
    }

    /// Returns a descriptor that is readable after the signal has arrived during a command.
    pub(super) fn arrival(&self) -> BorrowedFd<'_> {
        self.arrivals.as_fd()
    }

    /// Runs a function that watches `arrival`. The signal does not end the process during the call.
    pub(super) fn heard_by<T>(&self, run: impl FnOnce() -> T) -> T {
        self.idle.store(false, Ordering::SeqCst);
        let done = run();
        self.idle.store(true, Ordering::SeqCst);
        done
    }

    /// Ends this process as the signal does by default, if the signal arrived during a command.
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
        assert_eq!(status.signal(), Some(Forking::CANCEL_SIGNAL), "{status}");
    }
}
