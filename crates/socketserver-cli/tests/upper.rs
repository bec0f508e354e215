//! Tests `socketserver upper` from outside: every endpoint under every concurrency model, with our
//! own client and with common clients.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use common::{
    Guarded, MODELS, PATIENCE, Server, client, connect, exchange, exists, run, socketserver, text,
    until_listening,
};

#[test]
fn every_endpoint_answers_under_every_model() {
    for model in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let stream = format!("unix://{}/s", dir.path().display());
        let packets = format!("unixgram://{}/g", dir.path().display());
        let name = format!("unix://@upper-{model}-{}", std::process::id());
        let mut server = Server::start(
            &[
                "upper",
                "-c",
                model,
                "-l",
                "tcp://127.0.0.1:0",
                "-l",
                "udp://127.0.0.1:0",
                "-l",
                &stream,
                "-l",
                &packets,
                "-l",
                &name,
                "-l",
                "tcp://[::1]:0",
            ],
            6,
        );
        for path in ["s", "g"] {
            let mode = dir
                .path()
                .join(path)
                .metadata()
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        // The loop runs twice, so that the server serves each endpoint again after the others.
        for _ in 0..2 {
            for endpoint in &server.endpoints {
                let got = connect(&["--wait", "200ms", endpoint], b"hello w\xc3\xb6rld\xff\n");
                assert_eq!(text(&got.stderr), "");
                assert_eq!(
                    got.stdout, b"HELLO W\xc3\xb6RLD\xff\n",
                    "{model} {endpoint}"
                );
                assert!(got.status.success());
            }
        }
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{model}");
        assert!(!exists(dir.path().join("s")) && !exists(dir.path().join("g")));
    }
}

#[test]
fn ports_are_real_and_the_default_endpoint_is_this_machine_only() {
    let server = Server::start(&["upper", "-l", "tcp://localhost:0"], 1);
    assert!(!server.endpoints[0].ends_with(":0"));
    let help = run(&mut socketserver(), ["upper", "--help"], b"").unwrap();
    assert!(text(&help.stdout).contains("[default: tcp://127.0.0.1:8888]"));
}

#[test]
fn clients_are_independent_and_logged_with_their_address() {
    let server = Server::start(&["upper", "-l", "tcp://127.0.0.1:0"], 1);
    let mut clients: Vec<_> = (0..50).map(|_| client(&server, 0)).collect();
    for client in &mut clients {
        assert_eq!(exchange(client, b"abc"), b"ABC");
    }
    let peer = clients[0].local_addr().unwrap().to_string();
    let line = server.logged("connected");
    assert!(line.contains(&peer), "{line}");
    // A reset ends only the connection of that client.
    let reset = clients.remove(0);
    rustix::net::sockopt::set_socket_linger(&reset, Some(Duration::ZERO)).unwrap();
    drop(reset);
    let line = server.logged("disconnected");
    assert!(line.contains(&peer), "{line}");
    for client in &mut clients {
        assert_eq!(exchange(client, b"xyz"), b"XYZ");
    }
}

#[test]
fn logs_are_json_when_asked_and_off_when_asked() {
    let args = ["upper", "-l", "tcp://127.0.0.1:0", "--log-format", "json"];
    let server = Server::start(&args, 1);
    exchange(&mut client(&server, 0), b"a");
    let line = server.logged("\"connected\"");
    assert!(line.starts_with('{') && line.ends_with('}') && line.contains("\"peer\":\"127.0.0.1:"));

    let args = ["upper", "-l", "tcp://127.0.0.1:0", "--log-level", "off"];
    let mut server = Server::start(&args, 1);
    exchange(&mut client(&server, 0), b"a");
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(server.log(), Vec::<String>::new());
}

#[test]
fn a_drain_ends_at_its_deadline() {
    for model in MODELS {
        let args = [
            "upper",
            "-c",
            model,
            "-l",
            "tcp://127.0.0.1:0",
            "--drain-timeout",
            "100ms",
        ];
        let mut server = Server::start(&args, 1);
        let mut silent = client(&server, 0);
        exchange(&mut silent, b"here");
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{model}");
        assert_eq!(
            silent.read(&mut [0]).unwrap_or(0),
            0,
            "{model}: the client is cut"
        );
        assert!(server.logged("drained").contains("cancelled=1"), "{model}");
    }
}

#[test]
fn limits_are_options() {
    let args = [
        "upper",
        "-l",
        "tcp://127.0.0.1:0",
        "--workers",
        "1",
        "--at-limit",
        "reject",
        "--idle-timeout",
        "150ms",
    ];
    let server = Server::start(&args, 1);
    let mut silent = client(&server, 0);
    exchange(&mut silent, b"a");
    let mut rejected = client(&server, 0);
    assert_eq!(rejected.read(&mut [0]).unwrap_or(0), 0);
    server.logged("rejected");
    assert_eq!(silent.read(&mut [0]).unwrap(), 0, "cut for its silence");
    server.logged("timed out");
}

#[test]
fn failures_to_start_are_one_line_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let taken = Server::start(&["upper", "-l", "tcp://127.0.0.1:0"], 1);
    std::fs::write(dir.path().join("file"), "precious").unwrap();
    let missing = format!("unix://{}/no/s", dir.path().display());
    let file = format!("unix://{}/file", dir.path().display());
    for (endpoint, advice) in [
        (taken.endpoints[0].as_str(), "address in use"),
        (&missing, "no such directory"),
        (&file, "is not a socket"),
        ("tcp://192.0.2.1:80", "not available"),
        ("tcp://no-such-host.invalid:80", "bad address"),
    ] {
        // The server does not announce the valid first endpoint, and does not leave it behind.
        let args = ["upper", "-l", "tcp://127.0.0.1:0", "-l", endpoint];
        let got = run(&mut socketserver(), args, b"").unwrap();
        let complaint = text(&got.stderr);
        assert_eq!(got.status.code(), Some(1), "{endpoint}: {complaint}");
        assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
        assert!(complaint.contains(advice), "{complaint}");
        assert_eq!(text(&got.stdout), "");
    }
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"precious");
}

#[test]
fn wrong_usage_exits_2() {
    for args in [
        &["upper", "--no-such-option"][..],
        &["upper", "--concurrency", "magic"],
        &["upper", "--listen", "http://127.0.0.1"],
        &["upper", "--listen", "tcp://127.0.0.1"],
        &["connect", "nonsense"],
        &["command-client", "nonsense"],
        &["chat", "--concurrency", "sequential"],
        &["chat", "--listen", "udp://127.0.0.1:0"],
        &["upper", "--workers", "0"],
        &["upper", "--idle-timeout", "5"],
        &["upper", "--unix-mode", "999"],
        &["no-such-program"],
        &["connect"],
        &[],
    ] {
        let got = run(&mut socketserver(), args, b"").unwrap();
        assert_eq!(got.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn netcat_and_socat_and_python_get_their_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{}/s", dir.path().display());
    let server = Server::start(
        &[
            "upper",
            "-l",
            "tcp://127.0.0.1:0",
            "-l",
            "udp://127.0.0.1:0",
            "-l",
            &format!("unix://{path}"),
        ],
        3,
    );
    let (host, port) = server.address(0).split_once(':').unwrap();
    if let Some(got) = run(&mut Command::new("nc"), ["-N", host, port], b"hello\n") {
        assert_eq!(text(&got.stdout), "HELLO\n", "{}", text(&got.stderr));
    }
    let socat = |address: String| run(&mut Command::new("socat"), ["-", &address], b"hello\n");
    if let Some(got) = socat(format!("UNIX-CONNECT:{path}")) {
        assert_eq!(text(&got.stdout), "HELLO\n", "{}", text(&got.stderr));
    }
    if let Some(got) = socat(format!("UDP:{},shut-none", server.address(1))) {
        assert_eq!(text(&got.stdout), "HELLO\n", "{}", text(&got.stderr));
    }
    let script = "
import socket, sys
host, port, udp, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
tcp = socket.create_connection((host, port), timeout=10)
for chunk in (b'one', 'zwölf'.encode(), bytes(range(256))):
    tcp.sendall(chunk)
    got = b''
    while len(got) < len(chunk):
        got += tcp.recv(65536)
    assert got == chunk.upper(), got
tcp.close()
unix = socket.socket(socket.AF_UNIX)
unix.settimeout(10)
unix.connect(path)
unix.sendall(b'unix')
assert unix.recv(100) == b'UNIX'
packet = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
packet.settimeout(10)
packet.sendto(b'datagram', (host, udp))
assert packet.recvfrom(100) == (b'DATAGRAM', (host, udp))
print('ok')
";
    let udp = server.address(1).rsplit_once(':').unwrap().1;
    let args = ["-c", script, host, port, udp, &path];
    if let Some(got) = run(&mut Command::new("python3"), args, b"") {
        assert_eq!(text(&got.stdout), "ok\n", "{}", text(&got.stderr));
    }
}

#[test]
fn a_closed_stdout_does_not_keep_it_from_serving() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let endpoint = format!("unix://{}", path.display());
    let child = Command::new("sh")
        .args(["-c", "exec \"$0\" upper -l \"$1\" >&- 2>&-"])
        .args([env!("CARGO_BIN_EXE_socketserver"), &endpoint])
        .spawn()
        .unwrap();
    let mut child = Guarded(child);
    until_listening(&path);
    let got = connect(&[&endpoint], b"still here\n");
    assert_eq!(text(&got.stdout), "STILL HERE\n");
    let _ = Command::new("kill").arg(child.0.id().to_string()).status();
    assert_eq!(common::wait(&mut child.0).code(), Some(0));
}

/// Starts a server whose log goes into a pipe. The test holds the reading end and does not read.
fn unread_log(path: &std::path::Path, model: &str) -> Guarded {
    let endpoint = format!("unix://{}", path.display());
    let child = socketserver()
        .args(["upper", "-c", model, "-l", &endpoint])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let child = Guarded(child);
    until_listening(path);
    child
}

fn answers(path: &std::path::Path) {
    let mut client = std::os::unix::net::UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"x").unwrap();
    let mut answer = [0];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"X");
}

#[test]
fn a_log_whose_reader_is_gone_does_not_end_the_server() {
    for model in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut child = unread_log(&path, model);
        drop(child.0.stderr.take());
        (0..5).for_each(|_| answers(&path));
        let _ = Command::new("kill").arg(child.0.id().to_string()).status();
        assert_eq!(common::wait(&mut child.0).code(), Some(0), "{model}");
    }
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    for model in ["threading", "forking"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut child = unread_log(&path, model);
        // Each connection logs two lines of about a hundred bytes, together more than the 64 KiB of
        // a pipe.
        (0..500).for_each(|_| answers(&path));
        let _ = Command::new("kill").arg(child.0.id().to_string()).status();
        assert_eq!(common::wait(&mut child.0).code(), Some(0), "{model}");
        // The late part of the log reports that the server dropped lines.
        let mut log = String::new();
        child
            .0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        assert!(log.len() > 30_000, "{}", log.len());
    }
}
