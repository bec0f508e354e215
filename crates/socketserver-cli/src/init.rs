//! As the first process of a PID namespace, such as the entry point of a container: every process whose
//! parent has ended becomes its child, and stays a zombie until it is reaped.
//!
//! The server knows nothing of these. It runs in a process of its own, and this one does nothing but
//! pass signals on to it and reap what ends. So no status is taken that anything else waits for: the
//! server's own children are not children of this process.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::{env, io, thread};

use anyhow::Context;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use signal_hook::consts::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::Signals;

use crate::signals;

/// All that a server acts on, and what others send without a thought.
const PASSED_ON: [i32; 9] = [
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
];

/// Whether this process is the first one of its namespace.
///
/// Not if a service manager has started it and wants to hear from it: it listens to the process that
/// it has started, and to no child of it (systemd.service(5), `NotifyAccess=main`).
pub(crate) fn is_needed() -> bool {
    std::process::id() == 1 && env::var_os("NOTIFY_SOCKET").is_none()
}

/// Runs the same command in a child, and returns the code to exit with once that has ended.
///
/// # Errors
/// There is no process for it.
pub(crate) fn supervise() -> anyhow::Result<ExitCode> {
    // Before there is a child. What is ignored stays so in it, as execve(2) resets handlers only.
    let wanted = PASSED_ON
        .into_iter()
        .filter(|&signal| !signals::is_ignored(signal));
    let mut arrivals = Signals::new(wanted).context("cannot catch signals")?;
    let child = start().context("cannot start the server beside the first process")?;
    let server = Pid::from_child(&child);
    let pass_on = move || {
        for signal in arrivals.forever().filter_map(Signal::from_named_raw) {
            // It fails if the server has just ended.
            let _ = kill_process(server, signal);
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(pass_on)?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == server => {
                let status = ExitStatus::from_raw(status.as_raw());
                if status.signal().is_some() {
                    // It could not say so itself.
                    tracing::error!(%status, "the server was killed");
                }
                return Ok(code_of(status));
            }
            // Its number may be another process's by now: nothing is done with it.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io::Error::from(errno)).context("cannot wait for the server"),
        }
    }
}

fn start() -> io::Result<Child> {
    let mut args = env::args_os();
    let name = args.next().unwrap_or_else(|| "socketserver".into());
    let mut command = Command::new("/proc/self/exe");
    command.arg0(&name).args(args);
    // Meant for this process, and passed on with all else: sd_listen_fds(3).
    if env::var_os("LISTEN_PID").is_some_and(|pid| pid == "1") {
        command.env_remove("LISTEN_PID");
    }
    command.spawn()
}

/// As shells have it.
fn code_of(status: ExitStatus) -> ExitCode {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(1),
        (None, None) => 1,
    };
    ExitCode::from(code)
}
