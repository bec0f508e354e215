//! The program of this project, as users run it: `socketserver http`. It is the one that lies beside
//! this program, or what the environment's `SOCKETSERVER` names.

use std::env;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::Contender;
use super::files;

/// It takes its socket as a service of systemd does: the first one that is passed on is the
/// descriptor 3, and the process is named (`sd_listen_fds(3)`). Its standard input is that socket
/// until then, as nothing else than a shell puts a descriptor in a certain place in safe code.
const BECOME: &str = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";

/// Becomes the program, and stays the same process.
pub(super) fn serve(
    contender: Contender,
    listener: TcpListener,
    directory: &Path,
) -> anyhow::Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", BECOME, "sh"]).arg(path()?);
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

pub(super) fn missing() -> Option<String> {
    match path() {
        Ok(path) if path.is_file() => None,
        Ok(path) => Some(format!(
            "there is no {}: build it with `cargo build --release -p socketserver-cli`",
            path.display()
        )),
        Err(error) => Some(error.to_string()),
    }
}
