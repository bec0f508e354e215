//! Tests `socketserver chat` from outside.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use common::{Guarded, Server, client, hear, run, socketserver, text};

const MODELS: [&str; 3] = ["threading", "pooled", "green"];

/// Connects a client and waits for its echo, so that the client is in the room.
fn enter(server: &Server) -> TcpStream {
    let mut one = client(server, 0);
    one.write_all(b"here").unwrap();
    let name = one.local_addr().unwrap();
    hear(&mut one, format!("{name} here").as_bytes());
    one
}

#[test]
fn what_one_says_all_hear() {
    for model in MODELS {
        let server = Server::start(&["chat", "-c", model, "-l", "tcp://127.0.0.1:0"], 1);
        let mut first = enter(&server);
        let mut second = enter(&server);
        let second_name = second.local_addr().unwrap();
        hear(&mut first, format!("{second_name} here").as_bytes());
        second.write_all(b"w\xc3\xb6rd\xff").unwrap();
        for one in [&mut first, &mut second] {
            hear(
                one,
                &[second_name.to_string().as_bytes(), b" w\xc3\xb6rd\xff"].concat(),
            );
        }
        second.write_all(b"quit\r\n").unwrap();
        assert_eq!(second.read(&mut [0; 9]).unwrap(), 0);
        // The remaining member can still use the room.
        first.write_all(b"alone").unwrap();
        let name = first.local_addr().unwrap();
        hear(&mut first, format!("{name} alone").as_bytes());
    }
}

#[test]
fn a_client_that_does_not_read_is_cut_and_nobody_waits() {
    for model in MODELS {
        let server = Server::start(
            &[
                "chat",
                "-c",
                model,
                "--outbox-bytes",
                "65536",
                // The test must send megabytes until the buffers are full.
                "--byte-rate",
                "none",
                "-l",
                "tcp://127.0.0.1:0",
            ],
            1,
        );
        // The client is stopped, as by Ctrl-Z. It is in the room after its first message.
        let mut frozen = Guarded(
            socketserver()
                .args(["connect", &server.endpoints[0]])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let mut talking = enter(&server);
        let mut stdin = frozen.0.stdin.take().unwrap();
        stdin.write_all(b"i am here\n").unwrap();
        let mut byte = [0];
        while byte != *b"\n" {
            talking.read_exact(&mut byte).unwrap();
        }
        let stopped = Command::new("kill")
            .args(["-STOP", &frozen.0.id().to_string()])
            .status();
        assert!(stopped.unwrap().success());

        let name = talking.local_addr().unwrap().to_string();
        let chunk = [b'x'; 8000];
        let expected = [name.as_bytes(), b" ", &chunk].concat();
        // A new socket holds some MiB of these messages.
        let cut = (0..5000).any(|_| {
            talking.write_all(&chunk).unwrap();
            hear(&mut talking, &expected);
            server
                .log()
                .iter()
                .any(|line| line.contains("slow consumer"))
        });
        assert!(cut, "{model}: the stopped client was not cut");
        talking.write_all(b"still here").unwrap();
        hear(&mut talking, format!("{name} still here").as_bytes());
    }
}

#[test]
fn the_end_comes_with_the_last_words() {
    for model in MODELS {
        let mut server = Server::start(
            &[
                "chat",
                "-c",
                model,
                "--drain-timeout",
                "20s",
                "-l",
                "tcp://127.0.0.1:0",
            ],
            1,
        );
        let mut silent = enter(&server);
        let mut speaking = enter(&server);
        let name = speaking.local_addr().unwrap();
        hear(&mut silent, format!("{name} here").as_bytes());
        speaking.write_all(b"last words").unwrap();
        hear(&mut speaking, format!("{name} last words").as_bytes());
        server.signal("TERM");
        // The drain closes the room, so that no member has to leave first.
        let mut rest = String::new();
        silent.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, format!("{name} last words"), "{model}");
        assert!(server.wait().success());
    }
}

#[test]
fn clients_that_cannot_meet_are_told_so() {
    for (model, reason) in [
        ("forking", "meet in one room"),
        ("sequential", "several clients at a time"),
    ] {
        let args = ["chat", "-c", model, "-l", "tcp://127.0.0.1:0"];
        let output = run(&mut socketserver(), args, b"").unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(
            text(&output.stderr).contains(reason),
            "{}",
            text(&output.stderr)
        );
    }
    let args = ["chat", "-l", "udp://127.0.0.1:0"];
    let output = run(&mut socketserver(), args, b"").unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("needs connections"));
}

#[test]
fn five_python_clients_hear_the_same() {
    let server = Server::start(&["chat", "-c", "green", "-l", "tcp://127.0.0.1:0"], 1);
    let script = r#"
import socket, sys, threading
host, port = sys.argv[1].split(":")
CLIENTS, LINES = 5, 40
socks = [socket.create_connection((host, int(port)), timeout=20) for _ in range(CLIENTS)]
names = ["%s:%d" % s.getsockname() for s in socks]
# All are in the room once each has heard itself.
for s, name in zip(socks, names):
    s.sendall(b"+")
heard = [b""] * CLIENTS
for i, s in enumerate(socks):
    while (names[i] + " +").encode() not in heard[i]:
        heard[i] += s.recv(4096)
ready = threading.Barrier(CLIENTS)
def talk(i):
    ready.wait()
    for n in range(LINES):
        socks[i].sendall(b"<%d.%02d>" % (i, n))
def listen(i):
    import re
    while len(re.findall(rb"\d\.\d\d>", heard[i])) < CLIENTS * LINES:
        got = socks[i].recv(4096)
        assert got, "the server has closed"
        heard[i] += got
threads = [threading.Thread(target=f, args=(i,)) for i in range(CLIENTS) for f in (talk, listen)]
[t.start() for t in threads]
[t.join() for t in threads]
import re
orders = [re.findall(rb"\d\.\d\d>", h) for h in heard]
assert all(o == orders[0] for o in orders), "different orders"
assert sorted(orders[0]) == sorted(b"%d.%02d>" % (i, n) for i in range(CLIENTS) for n in range(LINES))
for s in socks:
    s.sendall(b"quit")
    while s.recv(4096): pass
"#;
    let args = ["-c", script, server.address(0)];
    let Some(output) = run(&mut Command::new("python3"), args, b"") else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
}
