//! Tests of the environment: the first process of a container, limits, forbidden system calls,
//! interfaces, and other users' files.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails, or is skipped"
)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{MODELS, PATIENCE, Server, client, connect, eventually, run, socketserver, text};

/// Returns true if a command works on this machine. If not, the test is skipped.
fn works(command: &[&str]) -> bool {
    let ran = Command::new(command[0]).args(&command[1..]).output();
    let works = ran.as_ref().is_ok_and(|output| output.status.success());
    if !works {
        println!("SKIPPED: {command:?} does not work here: {ran:?}");
    }
    works
}

/// Returns a command in which `runner` runs the program.
fn under(runner: &[&str], args: &[&str]) -> Command {
    let mut command = Command::new(runner[0]);
    command
        .args(&runner[1..])
        .arg(socketserver().get_program())
        .args(args)
        .stdin(Stdio::null());
    command
}

/// Sends a line to an endpoint over IP and returns the answer.
fn answer_of(endpoint: &str) -> String {
    let (scheme, address) = endpoint.split_once("://").unwrap();
    if scheme == "tcp" {
        return text(&connect(&[endpoint], b"hello\n").stdout);
    }
    let any = if address.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"hello\n", address).unwrap();
    let mut answer = [0; 64];
    let n = socket.recv(&mut answer).unwrap();
    text(&answer[..n])
}

/// Reads until the expected text has arrived.
#[track_caller]
fn hear_at_last(client: &mut impl Read, expected: &[u8]) {
    let mut heard = Vec::new();
    while !heard.ends_with(expected) {
        let mut byte = [0];
        hear_one(client, &mut byte, &heard);
        heard.extend(byte);
    }
}

#[track_caller]
fn hear_one(client: &mut impl Read, byte: &mut [u8; 1], heard: &[u8]) {
    if let Err(error) = client.read_exact(byte) {
        panic!("{error} after {:?}", text(heard));
    }
}

/// The command that runs a program as the first process of a namespace. A failed test leaves no
/// process behind.
const FIRST: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Returns the process ID and the state of each child of `parent`, from outside of its namespace.
fn children(parent: u32) -> Vec<(u32, char)> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let list = list.unwrap_or_default();
    let state = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit_once(") ")?.1.chars().next()?;
        Some((pid.parse().ok()?, state))
    };
    list.split_whitespace().filter_map(state).collect()
}

#[test]
fn the_first_process_of_a_container_leaves_no_zombies() {
    if !works(&[&FIRST[..], &["true"]].concat()) {
        return;
    }
    for model in ["threading", "forking", "pooled", "green"] {
        let args = [
            "command",
            "-c",
            model,
            "-l",
            "tcp://127.0.0.1:0",
            "--framing",
            "lines",
        ];
        let mut server = Server::launch(&mut under(&FIRST, &args), 1);
        let mut client = client(&server, 0);
        for _ in 0..10 {
            // Two processes outlive their shell, and one process ends with it.
            client
                .write_all(b"sleep 0.05 & (sleep 0.05 &) ; echo done\n")
                .unwrap();
            hear_at_last(&mut client, b"done\n");
        }
        let (first, _) = children(server.pid())[0];
        let adopted = || {
            let all = children(first);
            // The server itself is one of the children.
            (all.len() == 1 && all[0].1 != 'Z').then_some(())
        };
        eventually(|| adopted().is_some());
        drop(client);
        // Signals reach the server, and its end ends the container.
        let status = Command::new("kill").arg(first.to_string()).status();
        assert!(status.unwrap().success());
        assert!(server.wait().success(), "{model}");
    }
}

#[test]
fn the_first_process_ends_with_the_status_of_the_server() {
    if !works(&[&FIRST[..], &["true"]].concat()) {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", taken.local_addr().unwrap());
    let output = under(&FIRST, &["upper", "-l", &endpoint]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("in use"), "{output:?}");
}

/// The server gets the sockets that the first process inherits, and reloads by SIGHUP.
#[test]
fn the_first_process_passes_on_sockets_and_signals() {
    if !works(&[&FIRST[..], &["true"]].concat()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, "").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let fd = rustix::io::fcntl_dupfd_cloexec(listener.as_fd(), 200).unwrap();
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
    let script = format!("exec 3<&{number} {number}<&-; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"");
    let runner = [&FIRST[..], &["bash", "-c", &script, "bash"]].concat();
    let config = config.to_str().unwrap();
    let args = ["upper", "-l", "systemd", "--config", config];
    let mut server = Server::launch(&mut under(&runner, &args), 1);
    assert_eq!(
        server.address(0),
        listener.local_addr().unwrap().to_string()
    );
    assert_eq!(answer_of(&server.endpoints[0]), "HELLO\n");
    let (first, _) = children(server.pid())[0];
    let signal = |name: &str| {
        let status = Command::new("kill")
            .args(["-s", name, &first.to_string()])
            .status();
        assert!(status.unwrap().success());
    };
    signal("HUP");
    server.logged("reloaded");
    signal("TERM");
    assert!(server.wait().success());
}

/// The system call fails as in the profile of an older container engine.
#[test]
fn a_forking_server_does_not_start_where_pidfds_are_forbidden() {
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null"];
    if !works(&[&strace[..], &["true"]].concat()) {
        return;
    }
    for call in ["pidfd_open", "pidfd_send_signal"] {
        let inject = format!("inject={call}:error=EPERM");
        let runner = [&strace[..], &["-e", &inject]].concat();
        let args = ["upper", "-c", "forking", "-l", "tcp://127.0.0.1:0"];
        let output = under(&runner, &args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = text(&output.stderr);
        assert!(error.contains(call) && error.contains("seccomp"), "{error}");
        assert!(output.stdout.is_empty(), "it does not say that it serves");
    }
    // Commands need pidfds under every model.
    let runner = [&strace[..], &["-e", "inject=pidfd_open:error=EPERM"]].concat();
    let args = ["command", "-c", "threading", "-l", "tcp://127.0.0.1:0"];
    let output = under(&runner, &args).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("pidfd_open"), "{output:?}");
}

#[test]
fn listen_fds_that_were_not_passed_on_are_an_error_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let fd = rustix::io::fcntl_dupfd_cloexec(listener.as_fd(), 200).unwrap();
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
    for (count, told) in [
        ("2", "1 of them"),
        ("2000000000", "1 of them"),
        ("x", "not a number"),
    ] {
        let script = format!("exec 3<&{number} {number}<&-; LISTEN_PID=$$ exec \"$@\"");
        let output = under(
            &["bash", "-c", &script, "bash"],
            &["upper", "-l", "systemd"],
        )
        .env("LISTEN_FDS", count)
        .output()
        .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = text(&output.stderr);
        assert!(
            error.contains(told) && error.contains("LISTEN_FDS"),
            "{error}"
        );
    }
}

#[test]
fn the_soft_limit_of_descriptors_is_raised_and_given_back_to_commands() {
    let limited = ["bash", "-c", "ulimit -S -n 256 && exec \"$@\"", "bash"];
    let args = ["command", "-l", "tcp://127.0.0.1:0", "--framing", "lines"];
    let server = Server::launch(&mut under(&limited, &args), 1);
    server.logged("raised from 256 to");
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits
        .lines()
        .find(|l| l.starts_with("Max open files"))
        .unwrap();
    let soft: u64 = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(soft > 1024, "{line}");
    let mut client = client(&server, 0);
    client.write_all(b"ulimit -S -n\n").unwrap();
    hear_at_last(&mut client, b"256\n");

    let hard = ["bash", "-c", "ulimit -n 256 && exec \"$@\"", "bash"];
    let args = ["upper", "-c", "green", "-l", "tcp://127.0.0.1:0"];
    let server = Server::launch(&mut under(&hard, &args), 1);
    let told = server.logged("the hard limit is 256");
    assert!(
        told.contains("WARN") && told.contains("--workers"),
        "{told}"
    );

    let args = ["upper", "--workers", "20", "-l", "tcp://127.0.0.1:0"];
    let mut server = Server::launch(&mut under(&limited, &args), 1);
    server.signal("TERM");
    server.wait();
    let log = server.rest_of_log();
    assert!(
        !log.iter().any(|line| line.contains("descriptors")),
        "{log:?}"
    );
}

/// A shell in a network namespace of its own, with an interface that has a link-local address.
const APART: [&str; 5] = [
    "unshare",
    "-n",
    "sh",
    "-c",
    "ip link set lo up && ip link add d0 type veth peer name d1 && \
     ip link set d0 up && ip link set d1 up && \
     ip addr add fe80::7/64 dev d0 nodad && exec \"$0\" \"$@\"",
];

#[test]
fn zones_are_named_by_their_interfaces() {
    if !works(&[&APART[..], &["true"]].concat()) {
        return;
    }
    let args = [
        "echo",
        "--framing",
        "lines",
        "-l",
        "tcp://[fe80::7%d0]:0",
        "-l",
        "udp://[fe80::7%25d0]:0",
    ];
    let server = Server::launch(&mut under(&APART, &args), 2);
    let pid = server.pid().to_string();
    for endpoint in &server.endpoints {
        assert!(endpoint.contains("[fe80::7%d0]:"), "{endpoint}");
        // The address over TCP is the server's form, and the address over UDP is the form of a URL.
        let written = match endpoint.starts_with("tcp") {
            true => endpoint.clone(),
            false => endpoint.replace('%', "%25"),
        };
        let runner = [
            "-n",
            "-t",
            &pid,
            env!("CARGO_BIN_EXE_socketserver"),
            "connect",
        ];
        let mut nsenter = Command::new("nsenter");
        let Some(output) = run(nsenter.args(runner), [&written], b"hello\n") else {
            return;
        };
        let answer = text(&output.stdout);
        assert!(answer.starts_with("[fe80::7%d0]:"), "{written}: {output:?}");
        assert!(answer.ends_with(" hello\n"), "{answer}");
    }
    let connected = server.logged("connected");
    assert!(connected.contains("peer=[fe80::7%d0]:"), "{connected}");
}

#[test]
fn an_interface_that_does_not_exist_is_named_in_the_error() {
    for command in [
        &["upper", "-l"][..],
        &["connect"],
        &["load", "--duration", "1s"],
    ] {
        let output = socketserver()
            .args(command)
            .arg("tcp://[fe80::1%nosuch0]:1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success());
        let error = text(&output.stderr);
        assert!(
            error.contains("nosuch0") && error.contains("ip link"),
            "{error}"
        );
    }
}

#[test]
fn a_name_is_listened_on_at_all_of_its_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    fs::write(
        &hosts,
        "127.0.0.1 both.test\n127.0.0.2 both.test\n192.0.2.1 both.test\n",
    )
    .unwrap();
    let script = format!(
        "mount --bind {} /etc/hosts && exec \"$0\" \"$@\"",
        hosts.display()
    );
    let apart = ["unshare", "-m", "sh", "-c", &script];
    if !works(&[&apart[..], &["true"]].concat()) {
        return;
    }
    for (endpoint, metrics) in [("tcp", "tcp://both.test:0"), ("udp", "tcp://127.0.0.1:0")] {
        let endpoint = format!("{endpoint}://both.test:0");
        let args = ["upper", "-l", &endpoint, "--metrics", metrics];
        let told = if metrics.contains("both") { 4 } else { 3 };
        let server = Server::launch(&mut under(&apart, &args), told);
        let left_out = server.logged("does not have the address");
        assert!(left_out.contains("192.0.2.1"), "{left_out}");
        let addresses: Vec<_> = (0..2).map(|index| server.address(index)).collect();
        let ports: Vec<_> = addresses
            .iter()
            .map(|at| at.rsplit_once(':').unwrap())
            .collect();
        assert_eq!((ports[0].0, ports[1].0), ("127.0.0.1", "127.0.0.2"));
        assert_eq!(ports[0].1, ports[1].1, "one port for all");
        for endpoint in &server.endpoints[..2] {
            assert_eq!(answer_of(endpoint), "HELLO\n");
        }
    }
}

/// Returns a port that is free in both address families.
fn free_port() -> u16 {
    TcpListener::bind("[::]:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn both_wildcards_may_be_asked_for() {
    if TcpListener::bind("[::1]:0").is_err() {
        return println!("SKIPPED: this machine has no IPv6");
    }
    for scheme in ["tcp", "udp"] {
        for reverse in [false, true] {
            let port = free_port();
            let mut asked = [
                format!("{scheme}://[::]:{port}"),
                format!("{scheme}://0.0.0.0:{port}"),
            ];
            if reverse {
                asked.reverse();
            }
            let server = Server::start(&["upper", "-l", &asked[0], "-l", &asked[1]], 2);
            assert_eq!(server.endpoints, asked);
            for host in ["[::1]", "127.0.0.1"] {
                let endpoint = format!("{scheme}://{host}:{port}");
                assert_eq!(answer_of(&endpoint), "HELLO\n");
            }
        }
    }
}

#[test]
fn an_endpoint_that_is_part_of_another_names_it() {
    let port = free_port();
    let (any, one) = (
        format!("tcp://[::]:{port}"),
        format!("tcp://127.0.0.1:{port}"),
    );
    let output = socketserver()
        .args(["upper", "-l", &any, "-l", &one])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains(&any) && error.contains(&one), "{error}");
    let output = socketserver()
        .args(["upper", "-l", &any, "--metrics", &one])
        .output()
        .unwrap();
    let error = text(&output.stderr);
    assert!(error.contains(&any) && error.contains(&one), "{error}");
}

/// A server that did not recognize its own address as a client would answer its own answers without
/// end.
#[test]
fn a_datagram_from_an_own_address_is_refused_by_every_model() {
    for model in MODELS {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let fd = rustix::io::fcntl_dupfd_cloexec(socket.as_fd(), 200).unwrap();
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
        let script = format!("exec 3<&{number} {number}<&-; LISTEN_PID=$$ exec \"$@\"");
        let args = [
            "echo",
            "-c",
            model,
            "-l",
            "systemd",
            "--metrics",
            "tcp://127.0.0.1:0",
        ];
        let mut command = under(&["bash", "-c", &script, "bash"], &args);
        let server = Server::launch(command.env("LISTEN_FDS", "1"), 2);
        drop(fd);
        socket.send_to(b"again", to).unwrap();
        let metrics = server.address(1).trim_end_matches(" (metrics)").to_owned();
        let metrics = || {
            let mut client = common::client_at(&metrics);
            client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
            let mut page = String::new();
            client.read_to_string(&mut page).unwrap();
            page
        };
        eventually(|| {
            let page = metrics();
            let line = page
                .lines()
                .find(|line| line.contains("reason=\"own_address\""));
            line.is_some_and(|line| line.ends_with(" 1"))
        });
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        other.send_to(b"hello", to).unwrap();
        let mut answer = [0; 64];
        let n = other.recv(&mut answer).unwrap();
        assert!(text(&answer[..n]).ends_with(" hello"), "{model}");
    }
}

/// Another user replaces the socket by a link before the server sets its mode.
#[test]
fn a_link_in_the_place_of_the_socket_is_not_followed() {
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null"];
    if !works(&[&strace[..], &["true"]].concat()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for scheme in ["unix", "unixgram"] {
        let precious = dir.path().join(format!("{scheme}-precious"));
        fs::write(&precious, "").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
        let path = dir.path().join(scheme);
        let endpoint = format!("{scheme}://{}", path.display());
        let runner = [&strace[..], &["-e", "inject=bind:delay_exit=300000"]].concat();
        let mut command = under(&runner, &["upper", "-l", &endpoint, "--unix-mode", "666"]);
        let mut server = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        eventually(|| is_socket(&path));
        fs::remove_file(&path).unwrap();
        symlink(&precious, &path).unwrap();
        let status = common::wait(&mut server);
        let output = server.wait_with_output().unwrap();
        assert_eq!(status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains("was replaced"), "{output:?}");
        let mode = fs::metadata(&precious).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "the mode of another file was changed");
        assert!(
            fs::symlink_metadata(&path).unwrap().is_symlink(),
            "it stays"
        );
    }
}

/// The server sets the mode of a file by a descriptor, and needs /proc for it.
#[test]
fn without_proc_a_mode_that_the_umask_forbids_is_an_error() {
    let without_proc = "umask 077 && umount -l /proc && exec \"$0\" \"$@\"";
    let apart = ["unshare", "-m", "sh", "-c", without_proc];
    if !works(&[&apart[..], &["true"]].concat()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let endpoint = format!("unix://{}", path.display());
    let args = ["upper", "-l", &endpoint, "--unix-mode", "666"];
    let output = under(&apart, &args).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = text(&output.stderr);
    assert!(
        error.contains("/proc") && error.contains("umask"),
        "{error}"
    );
    assert!(!is_socket(&path), "it was removed");
    let server = Server::launch(&mut under(&apart, &args[..3]), 1);
    assert_eq!(server.endpoints, [endpoint]);
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[test]
fn a_log_line_shows_the_beginning_of_a_datagram() {
    let server = Server::start(&["echo", "-l", "udp://127.0.0.1:0"], 1);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(&[b'x'; 30_000], server.address(0)).unwrap();
    let mut answer = vec![0; 65_535];
    assert!(socket.recv(&mut answer).unwrap() > 30_000);
    let line = server.logged("xxx");
    assert!(line.len() < 500 && line.contains("(30000 bytes)"), "{line}");
}

#[test]
fn a_directory_for_output_that_cannot_be_used_is_a_warning() {
    let args = ["command", "-l", "tcp://127.0.0.1:0", "--framing", "lines"];
    let mut command = socketserver();
    command
        .args(args)
        .stdin(Stdio::null())
        .env("TMPDIR", "/nonexistent");
    let server = Server::launch(&mut command, 1);
    let line = server.logged("TMPDIR");
    assert!(
        line.contains("WARN") && line.contains("/nonexistent"),
        "{line}"
    );
    let mut client = client(&server, 0);
    client.write_all(b"head -c 2000000 /dev/zero\n").unwrap();
    let line = server.logged("killed");
    assert!(
        line.contains("WARN") && line.contains("/nonexistent"),
        "{line}"
    );
}

#[test]
fn certificates_are_not_written_through_links() {
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    for name in ["name.pem", "name.key"] {
        symlink(&precious, dir.path().join(name)).unwrap();
    }
    let mut command = socketserver();
    command.args(["cert", "name", "--dir"]).arg(dir.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    let mode = |name: &str| {
        let found = fs::symlink_metadata(dir.path().join(name)).unwrap();
        assert!(found.is_file(), "{name}");
        found.permissions().mode() & 0o077
    };
    assert_eq!(mode("name.key"), 0);
    mode("name.pem");
}

/// The metrics endpoint is a server like any other.
#[test]
fn the_metrics_socket_has_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    let metrics = format!("unix://{}", path.display());
    let args = [
        "upper",
        "-l",
        "tcp://127.0.0.1:0",
        "--metrics",
        &metrics,
        "--unix-mode",
        "660",
    ];
    let _server = Server::start(&args, 2);
    let mode = fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    UnixStream::connect(&path).unwrap();
}
