//! Tests `socketserver echo` from outside.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;

use common::{MODELS, PATIENCE, Server, client, hear, is_closed, run, text};

#[test]
fn each_chunk_comes_back_with_the_senders_address() {
    for model in MODELS {
        let server = Server::start(&["echo", "-c", model, "-l", "tcp://127.0.0.1:0"], 1);
        let mut one = client(&server, 0);
        let name = one.local_addr().unwrap().to_string();
        for chunk in [&b"hello"[..], b"w\xc3\xb6rld\xff\n", b"quitter"] {
            one.write_all(chunk).unwrap();
            hear(&mut one, &[name.as_bytes(), b" ", chunk].concat());
        }
        server.logged(&format!("{name} wörld\\xff\\n"));
        one.write_all(b"quit").unwrap();
        assert_eq!(one.read(&mut [0; 9]).unwrap(), 0, "{model}");

        let mut other = client(&server, 0);
        other.write_all(b"last").unwrap();
        other.shutdown(Shutdown::Write).unwrap();
        let mut all = String::new();
        other.read_to_string(&mut all).unwrap();
        assert_eq!(all, format!("{} last", other.local_addr().unwrap()));
    }
}

#[test]
fn many_clients_at_once() {
    for model in ["threading", "forking", "pooled", "green"] {
        let server = Server::start(&["echo", "-c", model, "-l", "tcp://127.0.0.1:0"], 1);
        let mut clients: Vec<_> = (0..20).map(|_| client(&server, 0)).collect();
        for round in 0..3 {
            for one in &mut clients {
                write!(one, "{round}").unwrap();
            }
            for one in &mut clients {
                let expected = format!("{} {round}", one.local_addr().unwrap());
                hear(one, expected.as_bytes());
            }
        }
    }
}

#[test]
fn lines_are_whole_however_they_arrive() {
    let server = Server::start(
        &["echo", "--framing", "lines", "-l", "tcp://127.0.0.1:0"],
        1,
    );
    let mut one = client(&server, 0);
    let name = one.local_addr().unwrap();
    for piece in ["o", "ne\r", "\ntwo\nthr"] {
        one.write_all(piece.as_bytes()).unwrap();
    }
    hear(&mut one, format!("{name} one\n{name} two\n").as_bytes());
    one.write_all(b"ee\nquit\n").unwrap();
    let mut rest = String::new();
    one.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, format!("{name} three\n"));

    // A line that is too long is logged, and ends only its own connection.
    let mut long = client(&server, 0);
    let _ = long.write_all(&vec![b'x'; 70_000]);
    let _ = long.read(&mut [0; 9]);
    server.logged("65536");
    let mut still = client(&server, 0);
    still.write_all(b"here\n").unwrap();
    let expected = format!("{} here\n", still.local_addr().unwrap());
    hear(&mut still, expected.as_bytes());
}

#[test]
fn datagrams_and_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let unix = format!("unix://{}", path.display());
    let server = Server::start(&["echo", "-l", "udp://127.0.0.1:0", "-l", &unix], 2);
    let packet = UdpSocket::bind("127.0.0.1:0").unwrap();
    packet.set_read_timeout(Some(PATIENCE)).unwrap();
    packet.send_to(b"quit", server.address(0)).unwrap();
    let mut answer = [0; 100];
    let n = packet.recv(&mut answer).unwrap();
    assert_eq!(
        text(&answer[..n]),
        format!("{} quit", packet.local_addr().unwrap())
    );

    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"who").unwrap();
    hear(&mut stream, b"unix:1 who");
}

#[test]
fn an_ipv4_client_of_an_ipv6_socket_keeps_its_address() {
    let server = Server::start(&["echo", "-l", "tcp://[::]:0"], 1);
    let port = server.address(0).rsplit_once(':').unwrap().1;
    let mut one = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    one.set_read_timeout(Some(PATIENCE)).unwrap();
    one.write_all(b"x").unwrap();
    let expected = format!("{} x", one.local_addr().unwrap());
    hear(&mut one, expected.as_bytes());
}

#[test]
fn pythons_socket_module_finds_what_it_expects() {
    let server = Server::start(&["echo", "-l", "tcp://127.0.0.1:0"], 1);
    let script = r#"
import socket, sys
host, port = sys.argv[1].split(":")
with socket.create_connection((host, int(port)), timeout=20) as s:
    ip, me = s.getsockname()
    for word in ["hello", "grüße"]:
        s.sendall(word.encode("utf-8"))
        expected = f"{ip}:{me} {word}".encode("utf-8")
        got = b""
        while len(got) < len(expected):
            got += s.recv(1024)
        assert got == expected, (got, expected)
    s.sendall(b"quit")
    assert s.recv(1024) == b""
"#;
    let args = ["-c", script, server.address(0)];
    let Some(output) = run(&mut Command::new("python3"), args, b"") else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn who_comes_in_can_be_limited() {
    let args = [
        "echo",
        "--deny",
        "127.0.0.2",
        "--allow",
        "127.0.0.0/8",
        "--max-per-peer",
        "1",
        "-l",
        "tcp://127.0.0.1:0",
    ];
    let server = Server::start(&args, 1);
    let mut first = client(&server, 0);
    first.write_all(b"x").unwrap();
    let expected = format!("{} x", first.local_addr().unwrap());
    hear(&mut first, expected.as_bytes());
    let mut second = client(&server, 0);
    assert_eq!(second.read(&mut [0; 9]).unwrap_or(0), 0);
    server.logged("too many of this peer");

    for (option, value) in [("--allow", "10.0.0.0/33"), ("--rate", "fast")] {
        let output = run(&mut common::socketserver(), ["echo", option, value], b"").unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(
            text(&output.stderr).contains("write 10"),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn who_is_silent_holds_up_nobody() {
    for model in MODELS {
        let args = [
            "echo",
            "-c",
            model,
            "--workers",
            "2",
            "--drain-timeout",
            "20s",
            "-l",
            "tcp://127.0.0.1:0",
        ];
        let mut server = Server::start(&args, 1);
        let silent = [client(&server, 0), client(&server, 0)];
        if model == "pooled" {
            // The two clients hold neither of the two threads.
            let mut third = client(&server, 0);
            third.write_all(b"x").unwrap();
            let expected = format!("{} x", third.local_addr().unwrap());
            hear(&mut third, expected.as_bytes());
        }
        server.logged("connected");
        // A sequential server waits for the first client, and sees the second client in the drain.
        let started = std::time::Instant::now();
        server.signal("TERM");
        if model == "forking" {
            drop(silent);
        }
        assert!(server.wait().success(), "{model}");
        assert!(started.elapsed().as_secs() < 10, "{model}");
    }
}

/// The server limits its log lines about rejected clients, so that strangers cannot fill a disk.
#[test]
fn who_is_turned_away_is_told_of_within_limits() {
    for model in MODELS {
        let args = ["echo", "-c", model, "-l", "tcp://127.0.0.1:0"];
        let mut server = Server::start(&[&args[..], &["--deny", "all"]].concat(), 1);
        let before = std::time::Instant::now();
        for _ in 0..200 {
            assert!(is_closed(&mut client(&server, 0)), "{model}");
        }
        // The log has at most ten lines in each second that has begun.
        let most = 10 * (before.elapsed().as_secs() + 1);
        server.signal("TERM");
        assert!(server.wait().success(), "{model}");
        let log = server.rest_of_log();
        let count = |text: &str| {
            log.iter()
                .map(|line| u64::from(line.contains(text)))
                .sum::<u64>()
        };
        let told = count("rejected id=");
        assert!((10..=most).contains(&told), "{model}: {told} of {most}");
        assert_eq!(count("connected"), 0, "{model}: {log:?}");
        let left_out = log
            .iter()
            .filter_map(|line| line.split_once("more clients within"));
        let left_out = left_out.filter_map(|(_, rest)| rest.split_once("count="));
        let left_out: u64 = left_out.map(|(_, n)| n.parse::<u64>().unwrap()).sum();
        assert_eq!(told + left_out, 200, "{model}: {log:?}");
    }
}
