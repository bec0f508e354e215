//! Tests of `socketserver connect`: its input, its output and its end.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Guarded, PATIENCE, Server, connect, run, socketserver, text};

#[test]
fn many_mebibytes_come_back_whole() {
    let server = Server::start(&["upper", "-l", "tcp://127.0.0.1:0"], 1);
    // The input is longer than all buffers on the way. A client that sends all input before it
    // reads would hang here.
    let line = [[b'x'; 1023].as_slice(), b"\n"].concat();
    let input = line.repeat(16 * 1024);
    let got = connect(&[&server.endpoints[0]], &input);
    assert!(got.status.success(), "{}", text(&got.stderr));
    assert!(
        got.stdout == input.to_ascii_uppercase(),
        "{} bytes",
        got.stdout.len()
    );
}

#[test]
fn input_without_a_line_end_is_sent_too() {
    // The sequential model keeps the order. On threads, one answer may overtake the other.
    let server = Server::start(
        &[
            "upper",
            "-c",
            "sequential",
            "-l",
            "tcp://127.0.0.1:0",
            "-l",
            "udp://127.0.0.1:0",
        ],
        2,
    );
    assert_eq!(
        text(&connect(&[&server.endpoints[0]], b"one\ntwo").stdout),
        "ONE\nTWO"
    );
    let got = connect(&["--wait", "200ms", &server.endpoints[1]], b"one\ntwo");
    assert_eq!(text(&got.stdout), "ONE\nTWO\n", "a line for each datagram");
    let long = vec![b'y'; 200_000];
    assert_eq!(
        connect(&[&server.endpoints[0]], &long).stdout,
        long.to_ascii_uppercase()
    );
}

#[test]
fn it_ends_when_the_peer_does_and_the_input_has_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let mut child = socketserver()
        .args(["connect", &endpoint])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(b"goodbye\n").unwrap();
    drop(peer);
    assert_eq!(common::wait(&mut child).code(), Some(0));
    let mut heard = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut heard)
        .unwrap();
    assert_eq!(heard, "goodbye\n");
}

/// The peer has only half-closed the connection.
#[test]
fn a_server_that_ends_first_gets_all_of_the_input() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let input = [[b'x'; 1023].as_slice(), b"\n"].concat().repeat(3 * 1024);
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.write_all(b"hello\n").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all
    });
    let got = connect(&[&endpoint], &input);
    assert!(got.status.success(), "{}", text(&got.stderr));
    assert_eq!(text(&got.stdout), "hello\n");
    assert!(server.join().unwrap() == input);
}

#[test]
fn input_that_is_left_because_the_server_has_closed_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoints = [
        format!("tcp://{}", tcp.local_addr().unwrap()),
        format!("unix://{}", path.display()),
    ];
    let server = std::thread::spawn(move || {
        // The peer must read some bytes. Otherwise its kernel would send a reset at once.
        let (mut peer, _) = tcp.accept().unwrap();
        peer.read_exact(&mut [0; 6]).unwrap();
        drop(peer);
        let (mut peer, _) = unix.accept().unwrap();
        peer.read_exact(&mut [0; 6]).unwrap();
    });
    for endpoint in endpoints {
        let mut child = Guarded(
            socketserver()
                .args(["connect", &endpoint])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let mut input = child.0.stdin.take().unwrap();
        input.write_all(b"first\n").unwrap();
        if endpoint.starts_with("tcp") {
            // If the server closes a TCP connection with unread input, the client gets a reset at
            // once. A closed Unix socket shows its state, and the client waits for no more input.
            std::thread::sleep(Duration::from_millis(300));
        }
        let _ = input.write_all(&b"second\n".repeat(200_000));
        drop(input);
        assert_eq!(common::wait(&mut child.0).code(), Some(1), "{endpoint}");
        let mut told = String::new();
        let mut stderr = child.0.stderr.take().unwrap();
        stderr.read_to_string(&mut told).unwrap();
        let is_told = told.contains("before all input was sent") || told.contains("reset");
        assert!(is_told, "{told}");
    }
    server.join().unwrap();
}

#[test]
fn a_closed_stdout_is_not_blamed_on_the_server() {
    let server = Server::start(&["upper", "-l", "tcp://127.0.0.1:0"], 1);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = socketserver()
        .args(["connect", &server.endpoints[0]])
        .stdin(Stdio::piped())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a\n").unwrap();
    assert_eq!(common::wait(&mut child).code(), Some(1));
    let mut told = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut told).unwrap();
    assert!(
        told.starts_with("socketserver: cannot write to stdout: "),
        "{told}"
    );
}

/// Control sequences reach the terminal only if an option asks for them.
#[test]
fn what_is_no_text_is_escaped_for_a_terminal() {
    let server = Server::start(&["upper", "-l", "tcp://127.0.0.1:0"], 1);
    let program = socketserver().get_program().display().to_string();
    let shown = |option: &str, terminal: bool| {
        let input = r"printf 'a\tb\033[2J\342\200\256\n'";
        let shell = format!(
            "{input} | {program} connect {option} {}",
            server.endpoints[0]
        );
        let mut command = match terminal {
            true => Command::new("script"),
            false => Command::new("sh"),
        };
        let args = match terminal {
            true => vec!["-qec", &shell, "/dev/null"],
            false => vec!["-c", &shell],
        };
        Some(text(&run(&mut command, args, b"")?.stdout))
    };
    assert_eq!(shown("", false).unwrap(), "A\tB\x1b[2J\u{202e}\n");
    let Some(escaped) = shown("", true) else {
        return;
    };
    assert_eq!(escaped, "A\tB\\x1b[2J\\u{202e}\r\n");
    assert_eq!(shown("--raw", true).unwrap(), "A\tB\x1b[2J\u{202e}\r\n");
}

#[test]
fn the_end_of_the_input_reaches_the_peer_and_answers_still_come() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        peer.write_all(b"got ").unwrap();
        peer.write_all(all.len().to_string().as_bytes()).unwrap();
    });
    assert_eq!(text(&connect(&[&endpoint], b"12345").stdout), "got 5");
    server.join().unwrap();
}

#[test]
fn a_peer_that_never_closes_is_waited_for_as_long_as_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let got = connect(&["--wait", "100ms", &endpoint], b"anybody?\n");
    assert!(got.status.success());
    assert_eq!(text(&got.stdout), "");
}

#[test]
fn each_line_is_a_datagram_and_a_unix_client_can_be_answered() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let endpoint = format!("udp://{}", udp.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut packet = [0; 100];
        for expected in ["one\n", "\n", "three\n"] {
            let (n, from) = udp.recv_from(&mut packet).unwrap();
            assert_eq!(&packet[..n], expected.as_bytes());
            udp.send_to(b"+", from).unwrap();
        }
    });
    let got = connect(&["--wait", "200ms", &endpoint], b"one\n\nthree\n");
    assert_eq!(text(&got.stdout), "+\n+\n+\n");
    server.join().unwrap();

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("g");
    let unix = UnixDatagram::bind(&path).unwrap();
    unix.set_read_timeout(Some(PATIENCE)).unwrap();
    let server = std::thread::spawn(move || {
        let mut packet = [0; 100];
        let (n, from) = unix.recv_from(&mut packet).unwrap();
        assert!(!from.is_unnamed());
        unix.send_to_addr(&packet[..n], &from).unwrap();
    });
    let endpoint = format!("unixgram://{}", path.display());
    assert_eq!(
        text(&connect(&["--wait", "200ms", &endpoint], b"echo\n").stdout),
        "echo\n"
    );
    server.join().unwrap();
}

#[test]
fn failures_are_one_line_and_exit_1() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (endpoint, advice) in [
        (format!("tcp://{closed}"), "refused"),
        (format!("udp://{closed}"), "no server listens"),
        (format!("unix://{}/s", dir.path().display()), "No such file"),
    ] {
        let got = connect(&[&endpoint], b"hello\n");
        let complaint = text(&got.stderr);
        assert_eq!(got.status.code(), Some(1), "{endpoint}: {complaint}");
        assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
        assert!(complaint.contains(advice), "{complaint}");
    }
    let wrong = connect(&["nonsense"], b"hello\n");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("write tcp://HOST:PORT"));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("udp://{}", udp.local_addr().unwrap());
    let got = connect(&[&endpoint], &vec![b'z'; 70_000]);
    assert_eq!(got.status.code(), Some(1));
    assert!(text(&got.stderr).contains("does not fit into a datagram"));
}

#[test]
fn a_reset_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.read_exact(&mut [0; 3]).unwrap();
        rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
    });
    let got = run(&mut socketserver(), ["connect", &endpoint], b"abc").unwrap();
    server.join().unwrap();
    assert_eq!(got.status.code(), Some(1));
    assert!(text(&got.stderr).contains("reset"), "{}", text(&got.stderr));
}

#[test]
fn it_talks_to_a_server_that_python_wrote() {
    let script = "
import socketserver, sys
class Reverse(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.strip()[::-1] + b'\\n')
with socketserver.TCPServer(('127.0.0.1', 0), Reverse) as server:
    print(server.server_address[1], flush=True)
    server.handle_request()
";
    let spawned = Command::new("python3")
        .args(["-c", script])
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut server) = spawned else {
        println!("SKIPPED: python3 is not installed");
        return;
    };
    let mut port = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(server.stdout.take().unwrap()),
        &mut port,
    )
    .unwrap();
    let got = connect(
        &[&format!("tcp://127.0.0.1:{}", port.trim())],
        b"abc\nstressed\n",
    );
    assert_eq!(text(&got.stdout), "cba\ndesserts\n");
    assert!(common::wait(&mut server).success());
}
