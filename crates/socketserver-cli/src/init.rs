//! The role of process 1 in a PID namespace, such as a container. Every process whose parent has
//! ended becomes a child of process 1, and remains a zombie until it is reaped.
//!
//! The server runs in a child process. Process 1 only passes signals on to it and reaps children.
//! Because the server's own children are not children of process 1, no status is reaped for which
//! the server waits.

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

/// All signals that a server handles, and signals that other programs send routinely.
const PASSED_ON: [i32; 9] = [
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
];

/// Returns true if this process is process 1 of its namespace and must reap.
///
/// Returns false if a service manager expects notifications, because it accepts them only from the
/// process that it has started (systemd.service(5), `NotifyAccess=main`).
pub(crate) fn is_needed() -> bool {
    std::process::id() == 1 && env::var_os("NOTIFY_SOCKET").is_none()
}

/// Runs the same command in a child, and returns the exit code of the child.
///
/// # Errors
/// Returns an error if the child cannot be started.
pub(crate) fn supervise() -> anyhow::Result<ExitCode> {
    // Runs before the child exists. Ignored signals stay ignored in the child, because execve(2)
    // resets only handlers.
    let wanted = PASSED_ON
        .into_iter()
        .filter(|&signal| !signals::is_ignored(signal));
    let mut arrivals = Signals::new(wanted).context("cannot catch signals")?;
    let child = start().context("cannot start the server as a child of process 1")?;
    let server = Pid::from_child(&child);
    let pass_on = move || {
        for signal in arrivals.forever().filter_map(Signal::from_named_raw) {
            // The call fails if the server has just ended.
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
                    // The server could not log its own death.
                    tracing::error!(%status, "the server was killed");
                }
                return Ok(code_of(status));
            }
            // The number may already belong to another process, so this process does not use it.
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
    // The variable is meant for this process, which passes it on to the child: sd_listen_fds(3).
    if env::var_os("LISTEN_PID").is_some_and(|pid| pid == "1") {
        command.env_remove("LISTEN_PID");
    }
    command.spawn()
}

/// Returns the exit code that a shell would give.
fn code_of(status: ExitStatus) -> ExitCode {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(1),
        (None, None) => 1,
    };
    ExitCode::from(code)
}
