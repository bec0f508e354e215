//! nginx, if it is installed: an idle master and one worker. It reads nothing of the system's
//! configuration, and writes nothing outside of the given directory.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use rustix::io::FdFlags;
use rustix::process::{Signal, geteuid, set_parent_process_death_signal};

use super::files;

/// Replaces this process with nginx.
pub(super) fn serve(listener: &TcpListener, address: &str, directory: &Path) -> anyhow::Result<()> {
    let program = find_program().context("nginx is not installed")?;
    let config = directory.join("nginx.conf");
    fs::write(
        &config,
        configuration(address, directory, &build_info(&program)),
    )?;
    // A killed master would leave its worker running; at SIGTERM it ends the worker too.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    rustix::io::fcntl_setfd(listener, FdFlags::empty())?;
    let error = Command::new(program)
        .arg("-c")
        .arg(config)
        // The log for errors before the configuration is read.
        .arg("-e")
        .arg(directory.join("error.log"))
        // nginx passes its sockets like this to its successor in an upgrade.
        .env("NGINX", format!("{};", listener.as_fd().as_raw_fd()))
        .exec();
    Err(error.into())
}

/// Sets what Debian's package sets for files (`sendfile`, `tcp_nopush`), and turns logs off.
fn configuration(address: &str, directory: &Path, info: &str) -> String {
    let own = directory.display();
    let files = files(directory);
    let files = files.display();
    let mut out = format!("worker_processes 1;\ndaemon off;\npid \"{own}/nginx.pid\";\n");
    if geteuid().is_root() {
        // A worker of the user `nobody` could not read the directory.
        out.push_str("user root;\n");
    }
    let _ = write!(
        out,
        "error_log \"{own}/error.log\" warn;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
         access_log off;\n\
         default_type application/octet-stream;\n\
         sendfile on;\n\
         tcp_nopush on;\n\
         keepalive_requests 1000000;\n"
    );
    // nginx creates these directories at its start, and gives them to its user.
    out.push_str(&format!("client_body_temp_path \"{own}/body\";\n"));
    for module in ["proxy", "fastcgi", "uwsgi", "scgi"] {
        if !info.contains(&format!("--without-http_{module}_module")) {
            let _ = writeln!(out, "{module}_temp_path \"{own}/{module}\";");
        }
    }
    let _ = write!(
        out,
        "server {{ listen {address}; root \"{files}\"; }}\n}}\n"
    );
    out
}

/// Searches the search path, and the directories for programs of administrators.
fn find_program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = env::split_paths(&path);
    let more = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    own.chain(more)
        .map(|directory| directory.join("nginx"))
        .find(|program| program.is_file())
}

pub(super) fn unavailable_reason() -> Option<String> {
    find_program()
        .is_none()
        .then(|| "nginx is not installed".into())
}

pub(in super::super) fn version() -> Option<String> {
    let info = build_info(&find_program()?);
    let (_, version) = info.lines().next()?.rsplit_once('/')?;
    Some(format!("nginx {version}"))
}

/// Returns the output of `nginx -V`: the version and the build options.
fn build_info(program: &Path) -> String {
    let output = Command::new(program)
        .arg("-V")
        .stdin(Stdio::null())
        .output();
    let output = output.map(|output| output.stderr).unwrap_or_default();
    String::from_utf8_lossy(&output).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_module_is_not_configured() {
        let text = configuration(
            "127.0.0.1:8080",
            Path::new("/there"),
            "configure arguments: --without-http_uwsgi_module",
        );
        assert!(
            text.contains("\nscgi_temp_path \"/there/scgi\";\n"),
            "{text}"
        );
        assert!(!text.contains("uwsgi"), "{text}");
        assert!(text.contains("listen 127.0.0.1:8080; root \"/there/files\";"));
    }
}
