//! nginx, if the system has one: a master that does nothing, and one worker. Nothing of the system's
//! configuration is read, and nothing is written outside of the directory.

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

/// Becomes nginx, and stays the same process.
pub(super) fn serve(listener: &TcpListener, address: &str, directory: &Path) -> anyhow::Result<()> {
    let program = find().context("there is no nginx")?;
    let config = directory.join("nginx.conf");
    fs::write(&config, configuration(address, directory, &about(&program)))?;
    // A master that is killed leaves its worker behind; at SIGTERM it ends both at once.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    rustix::io::fcntl_setfd(listener, FdFlags::empty())?;
    let error = Command::new(program)
        .arg("-c")
        .arg(config)
        // Where it complains before it has read that.
        .arg("-e")
        .arg(directory.join("error.log"))
        // This is how it hands sockets to the one that takes over when it is upgraded.
        .env("NGINX", format!("{};", listener.as_fd().as_raw_fd()))
        .exec();
    Err(error.into())
}

/// What Debian's package sets for files (`sendfile`, `tcp_nopush`), and no log.
fn configuration(address: &str, directory: &Path, about: &str) -> String {
    let own = directory.display();
    let files = files(directory);
    let files = files.display();
    let mut out = format!("worker_processes 1;\ndaemon off;\npid \"{own}/nginx.pid\";\n");
    if geteuid().is_root() {
        // A worker that is nobody could not read the directory.
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
    // It makes them at the start, and gives them to its user.
    out.push_str(&format!("client_body_temp_path \"{own}/body\";\n"));
    for module in ["proxy", "fastcgi", "uwsgi", "scgi"] {
        if !about.contains(&format!("--without-http_{module}_module")) {
            let _ = writeln!(out, "{module}_temp_path \"{own}/{module}\";");
        }
    }
    let _ = write!(
        out,
        "server {{ listen {address}; root \"{files}\"; }}\n}}\n"
    );
    out
}

/// In the search path, or where systems put what only administrators start.
fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = env::split_paths(&path);
    let more = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    own.chain(more)
        .map(|directory| directory.join("nginx"))
        .find(|program| program.is_file())
}

pub(super) fn missing() -> Option<String> {
    find().is_none().then(|| "there is no nginx".into())
}

pub(in super::super) fn version() -> Option<String> {
    let about = about(&find()?);
    let (_, version) = about.lines().next()?.rsplit_once('/')?;
    Some(format!("nginx {version}"))
}

/// Its version, and what it was built with.
fn about(program: &Path) -> String {
    let told = Command::new(program)
        .arg("-V")
        .stdin(Stdio::null())
        .output();
    let told = told.map(|told| told.stderr).unwrap_or_default();
    String::from_utf8_lossy(&told).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_is_not_there_is_not_configured() {
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
