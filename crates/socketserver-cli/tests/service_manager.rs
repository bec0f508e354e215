//! Tests of a server that runs as a service: inherited sockets, notifications to the manager, and
//! dropping root.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{MODELS, PATIENCE, Server, client, hear, socketserver};

/// Runs the program with descriptors from 3 on, as a service manager does. A shell sets the
/// descriptors, because Rust needs unsafe code for that.
fn with_sockets(sockets: &[&dyn AsFd], names: &str, args: &[&str]) -> Command {
    let mut script = String::new();
    let numbers = sockets.iter().map(|socket| {
        let fd = socket.as_fd();
        // The descriptor stays open until the shell has it.
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
        std::os::fd::AsRawFd::as_raw_fd(&fd)
    });
    for (index, number) in numbers.enumerate() {
        script += &format!("exec {}<&{number}; ", 3 + index);
    }
    // The shell and the program are the same process.
    script += "LISTEN_PID=$$ exec \"$@\"";
    let mut command = Command::new("bash");
    command
        .args(["-c", &script, "bash"])
        .arg(socketserver().get_program())
        .args(args)
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names)
        .stdin(Stdio::null());
    command
}

#[test]
fn sockets_of_a_socket_unit_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for model in MODELS {
        let _ = fs::remove_file(&path);
        // The numbers are high, so that they do not collide with the descriptors of the shell.
        let high = |fd: &dyn AsFd| rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 200).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let unix = UnixListener::bind(&path).unwrap();
        let sockets = [high(&tcp), high(&udp), high(&unix)];
        let sockets: Vec<&dyn AsFd> = sockets.iter().map(|fd| fd as &dyn AsFd).collect();
        // A client connects before the server starts.
        let mut early = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        early.set_read_timeout(Some(PATIENCE)).unwrap();
        early.write_all(b"early").unwrap();
        let args = ["upper", "-c", model, "-l", "systemd:web", "-l", "systemd"];
        let mut server = Server::launch(&mut with_sockets(&sockets, "udp:web:unix", &args), 3);
        // The named endpoint takes the socket of that name. The rest follow in order.
        let expected = [
            format!("udp://{}", udp.local_addr().unwrap()),
            format!("tcp://{}", tcp.local_addr().unwrap()),
            format!("unix://{}", path.display()),
        ];
        assert_eq!(server.endpoints, expected, "{model}");
        hear(&mut early, b"EARLY");
        drop(early);
        let one = UdpSocket::bind("127.0.0.1:0").unwrap();
        one.set_read_timeout(Some(PATIENCE)).unwrap();
        one.send_to(b"packet", udp.local_addr().unwrap()).unwrap();
        let mut answer = [0; 16];
        assert_eq!(one.recv(&mut answer).unwrap(), 6);
        let mut other = UnixStream::connect(&path).unwrap();
        other.write_all(b"unix").unwrap();
        hear(&mut other, b"UNIX");
        drop(other);
        server.signal("TERM");
        assert!(server.wait().success());
        // The process that bound the socket keeps it open, so that a client can wait there for the
        // next server.
        assert!(path.exists(), "the file is the manager's");
        TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    }
}

#[test]
fn without_sockets_there_is_advice() {
    for args in [["upper", "-l", "systemd"], ["upper", "-l", "systemd:web"]] {
        let output = socketserver().args(args).output().unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("systemd-socket-activate"), "{error}");
    }
    // The variables are for another process.
    let output = socketserver()
        .args(["upper", "-l", "systemd"])
        .envs([("LISTEN_FDS", "1"), ("LISTEN_PID", "1")])
        .output()
        .unwrap();
    assert!(!output.status.success());
}

/// The socket on which the service manager receives notifications.
struct Manager {
    socket: UnixDatagram,
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            _dir: dir,
            path,
        }
    }

    fn hears(&self) -> String {
        let mut message = [0; 1024];
        let n = self.socket.recv(&mut message).unwrap();
        String::from_utf8(message[..n].to_vec()).unwrap()
    }

    #[track_caller]
    fn hears_of(&self, what: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let message = self.hears();
            if message.lines().any(|line| line == what) {
                return message;
            }
            assert!(Instant::now() < end, "{what} was not told");
        }
    }
}

#[test]
fn the_manager_is_told() {
    let manager = Manager::new();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    for model in MODELS {
        fs::write(&config, "max-per-peer = 5\n").unwrap();
        let mut command = socketserver();
        command
            .args([
                "upper",
                "-c",
                model,
                "-l",
                "tcp://127.0.0.1:0",
                "--drain-timeout",
                "7s",
            ])
            .arg("--config")
            .arg(&config)
            .env("NOTIFY_SOCKET", &manager.path)
            .env("WATCHDOG_USEC", "200000")
            .stdin(Stdio::null());
        let mut server = Server::launch(&mut command, 1);
        manager.hears_of("READY=1");
        // The accept loop notifies the manager twice in that time, with or without clients.
        let start = Instant::now();
        for _ in 0..3 {
            manager.hears_of("WATCHDOG=1");
        }
        assert!(start.elapsed() >= Duration::from_millis(150), "{model}");
        fs::write(&config, "max-per-peer = 6\n").unwrap();
        server.signal("HUP");
        let reloading = manager.hears_of("RELOADING=1");
        assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
        manager.hears_of("READY=1");
        server.signal("TERM");
        let stopping = manager.hears_of("STOPPING=1");
        assert!(
            stopping.contains("EXTEND_TIMEOUT_USEC=12000000"),
            "{stopping}"
        );
        assert!(server.wait().success());
    }
}

#[test]
fn commands_know_nothing_of_the_manager() {
    let manager = Manager::new();
    let mut command = socketserver();
    command
        .args(["command", "--framing", "lines", "-l", "tcp://127.0.0.1:0"])
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "60000000")
        .stdin(Stdio::null());
    let server = Server::launch(&mut command, 1);
    let mut one = client(&server, 0);
    one.write_all(b"env | grep -c -e NOTIFY_ -e WATCHDOG_\n")
        .unwrap();
    // The reply is a header and then the number of variables that grep has found.
    let mut reply = Vec::new();
    while !reply.ends_with(b"\n") {
        let mut byte = [0];
        one.read_exact(&mut byte).unwrap();
        reply.push(byte[0]);
    }
    assert!(reply.ends_with(b"0\n"), "{}", common::text(&reply));
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the numbers after a label in /proc/PID/status.
fn ids(pid: u32, label: &str) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(label))
        .unwrap();
    line.split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect()
}

#[test]
fn root_is_given_up_on_all_threads() {
    if !is_root() {
        println!("SKIPPED: only root can give up root");
        return;
    }
    // The directory is accessible to that user.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("s");
    for model in MODELS {
        let unix = format!("unix://{}", path.display());
        let args = ["upper", "-c", model, "-l", "tcp://127.0.0.1:0", "-l", &unix];
        let mut args = args.to_vec();
        args.extend(["--user", "65534", "--group", "65533"]);
        let server = Server::start(&args, 2);
        let mut one = client(&server, 0);
        one.write_all(b"hello").unwrap();
        hear(&mut one, b"HELLO");
        let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
        for thread in threads {
            let thread = thread
                .unwrap()
                .file_name()
                .into_string()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(ids(thread, "Uid:"), [65534; 4], "{model}");
            assert_eq!(ids(thread, "Gid:"), [65533; 4], "{model}");
            assert_eq!(ids(thread, "Groups:"), [65533], "{model}");
        }
        let file = fs::metadata(&path).unwrap();
        assert_eq!(
            (file.uid(), file.gid(), file.mode() & 0o777),
            (65534, 65533, 0o600)
        );
        drop(server);
        let _ = fs::remove_file(&path);
    }
}

#[test]
fn who_cannot_become_another_is_told() {
    let output = socketserver()
        .args(["upper", "-l", "tcp://127.0.0.1:0", "--user", "no such user"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("no such user") && error.contains("getent"),
        "{error}"
    );
    if !is_root() || !Path::new("/usr/bin/setpriv").exists() {
        println!("SKIPPED: setpriv is not installed, or this is not root");
        return;
    }
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups"])
        .arg(socketserver().get_program())
        .args(["upper", "-l", "tcp://127.0.0.1:0", "--user", "root"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("only root") || error.contains("Permission denied"),
        "{error}"
    );
}
