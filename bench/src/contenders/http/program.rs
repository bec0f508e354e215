//! The program `socketserver http` of this project, as users run it. It is the one beside this
//! program, or the one that the environment variable `SOCKETSERVER` names.

use std::env;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::Contender;
use super::files;

/// Passes the socket as systemd does: the first passed socket is descriptor 3, and `LISTEN_PID`
/// names the process (`sd_listen_fds(3)`). The socket arrives as standard input, because safe code
/// cannot choose a descriptor's number, but a shell can.
const LAUNCH: &str = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";

/// Replaces this process with the program.
pub(super) fn serve(
    contender: Contender,
    listener: TcpListener,
    directory: &Path,
) -> anyhow::Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", LAUNCH, "sh"]).arg(path()?);
    command.arg("http").arg(files(directory));
    command.args(["--listen", "systemd", "--concurrency", &contender.name()]);
    command.args(["--access-log", "off", "--log-level", "warn"]);
    let error = command.stdin(Stdio::from(OwnedFd::from(listener))).exec();
    Err(error.into())
}

fn path() -> std::io::Result<PathBuf> {
    match env::var_os("SOCKETSERVER") {
        Some(path) => Ok(path.into()),
        None => Ok(env::current_exe()?.with_file_name("socketserver")),
    }
}

pub(super) fn unavailable_reason() -> Option<String> {
    match path() {
        Ok(path) if path.is_file() => None,
        Ok(path) => Some(format!(
            "{} does not exist: build it with `cargo build --release -p socketserver-cli`",
            path.display()
        )),
        Err(error) => Some(error.to_string()),
    }
}
