//! Tests with WebSocket clients other than browsers: order, limits, the console and the end of
//! connections.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use crate::common::{Server, client, client_at, eventually, hear, run, socketserver, text};
use crate::{MODELS, chat};

type Socket = WebSocket<TcpStream>;

/// Connects a WebSocket client and returns it with its name.
fn join(server: &Server) -> (Socket, String) {
    let stream = client(server, 1);
    let url = format!("ws://{}/ws", server.address(1));
    let (mut socket, _) = tungstenite::client(url, stream).unwrap();
    let hello = next(&mut socket);
    let name = hello.strip_prefix(' ').unwrap().to_owned();
    assert_eq!(name, socket.get_ref().local_addr().unwrap().to_string());
    (socket, name)
}

/// Connects a WebSocket client and waits for its echo, so that the client is in the room.
fn enter(server: &Server) -> (Socket, String) {
    let (mut socket, name) = join(server);
    socket.send(Message::text("here\n")).unwrap();
    assert_eq!(next(&mut socket), format!("{name} here\n"));
    (socket, name)
}

#[track_caller]
fn next(socket: &mut Socket) -> String {
    loop {
        match socket.read().unwrap() {
            Message::Ping(_) => socket.flush().unwrap(),
            message => return message.into_text().unwrap().as_str().to_owned(),
        }
    }
}

#[track_caller]
fn is_closed(socket: &mut Socket) -> (u16, String) {
    match socket.read().unwrap() {
        Message::Close(Some(CloseFrame { code, reason })) => {
            (code.into(), reason.as_str().to_owned())
        }
        other => panic!("not the end: {other}"),
    }
}

#[test]
fn all_hear_the_same_in_one_order() {
    const EACH: usize = 50;
    for model in MODELS {
        let server = chat(model, &["--framing", "lines"]);
        let (mut first, first_name) = enter(&server);
        let (mut second, second_name) = enter(&server);
        assert_eq!(next(&mut first), format!("{second_name} here\n"));
        let mut terminal = client(&server, 0);
        terminal.write_all(b"here\n").unwrap();
        let name = terminal.local_addr().unwrap();
        hear(&mut terminal, format!("{name} here\n").as_bytes());
        for socket in [&mut first, &mut second] {
            assert_eq!(next(socket), format!("{name} here\n"));
        }
        for n in 0..EACH {
            first.send(Message::text(format!("{n}\n"))).unwrap();
            terminal.write_all(format!("{n}\n").as_bytes()).unwrap();
            // The binary message has several lines, and the last line has no line end.
            second
                .send(Message::binary(format!("{n}\r\nand {n}")))
                .unwrap();
        }
        let all: Vec<_> = (0..4 * EACH).map(|_| next(&mut first)).collect();
        assert_eq!(
            (0..4 * EACH).map(|_| next(&mut second)).collect::<Vec<_>>(),
            all
        );
        hear(&mut terminal, all.concat().as_bytes());
        let of = |name: &str, which: &str| {
            (0..EACH).all(|n| all.contains(&format!("{name} {which}{n}\n")))
        };
        assert!(of(&first_name, "") && of(&second_name, "") && of(&second_name, "and "));
        assert!(of(&name.to_string(), ""));
    }
}

#[test]
fn quit_leaves_and_what_was_said_before_is_heard() {
    for model in MODELS {
        let server = chat(model, &[]);
        let (mut leaving, name) = enter(&server);
        let (mut staying, _) = enter(&server);
        next(&mut leaving);
        leaving.send(Message::text("bye\n")).unwrap();
        leaving.send(Message::text("quit\n")).unwrap();
        assert_eq!(next(&mut leaving), format!("{name} bye\n"));
        assert_eq!(is_closed(&mut leaving), (1000, "goodbye".into()));
        assert_eq!(next(&mut staying), format!("{name} bye\n"));
    }
}

#[test]
fn a_drain_says_so_after_the_last_words() {
    for model in MODELS {
        let mut server = chat(model, &["--drain-timeout", "20s"]);
        let (mut silent, _) = enter(&server);
        let mut speaking = client(&server, 0);
        speaking.write_all(b"last words").unwrap();
        let name = speaking.local_addr().unwrap();
        hear(&mut speaking, format!("{name} last words").as_bytes());
        server.signal("TERM");
        assert_eq!(next(&mut silent), format!("{name} last words"));
        assert_eq!(is_closed(&mut silent).0, 1001, "{model}");
        assert!(server.wait().success());
    }
}

#[test]
fn one_that_does_not_read_is_cut_as_a_terminal_is() {
    for model in MODELS {
        // The test must send megabytes until the buffers are full.
        let limits = ["--outbox-bytes", "65536", "--byte-rate", "none"];
        let server = chat(model, &limits);
        let (frozen, _) = enter(&server);
        let mut talking = client(&server, 0);
        let name = talking.local_addr().unwrap().to_string();
        let chunk = [b'x'; 8000];
        let expected = [name.as_bytes(), b" ", &chunk].concat();
        let cut = (0..5000).any(|_| {
            talking.write_all(&chunk).unwrap();
            hear(&mut talking, &expected);
            server
                .log()
                .iter()
                .any(|line| line.contains("slow consumer"))
        });
        assert!(cut, "{model}: it was not cut");
        drop(frozen);
    }
}

#[test]
fn what_is_too_long_ends_the_connection() {
    let server = chat("threading", &[]);
    let (mut socket, name) = enter(&server);
    socket.send(Message::text("x".repeat(8192))).unwrap();
    assert_eq!(next(&mut socket).len(), name.len() + 1 + 8192);
    socket.send(Message::text("x".repeat(8193))).unwrap();
    assert_eq!(is_closed(&mut socket).0, 1009);
}

#[test]
fn a_browser_that_answers_may_be_silent_and_a_terminal_may_not() {
    let more = ["--idle-timeout", "2s", "--web-ping", "500ms"];
    let server = chat("green", &more);
    let (mut socket, name) = enter(&server);
    let mut terminal = client(&server, 0);
    terminal.write_all(b"here\n").unwrap();
    let terminal_name = terminal.local_addr().unwrap();
    let mut rest = String::new();
    assert_eq!(next(&mut socket), format!("{terminal_name} here\n"));
    // The server cancels the silent terminal, while the WebSocket client answers pings.
    let reading = std::thread::spawn(move || terminal.read_to_string(&mut rest));
    for _ in 0..5 {
        assert!(matches!(socket.read().unwrap(), Message::Ping(_)));
        socket.flush().unwrap();
    }
    reading.join().unwrap().unwrap();
    socket.send(Message::text("still here")).unwrap();
    assert_eq!(next(&mut socket), format!("{name} still here"));
    // The client stops answering.
    loop {
        match socket.get_mut().read(&mut [0; 64]) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(server.logged("disconnected").contains("reason="));
}

#[test]
fn the_console_and_the_limits_know_browsers() {
    let args = [
        "chat",
        "-l",
        "tcp://127.0.0.1:0",
        "--web",
        "http://127.0.0.1:0",
    ];
    let limits = ["--max-per-peer", "2", "--metrics", "tcp://127.0.0.1:0"];
    let mut server = Server::with_console(&[&args[..], &limits].concat(), 3);
    let (mut socket, name) = enter(&server);
    let mut other = client(&server, 1);
    // A third connection of the same address to this endpoint is rejected. The other endpoint has
    // its own count.
    other.write_all(b"GET /").unwrap();
    eventually(|| {
        let mut third = client(&server, 1);
        let _ = third.write_all(b"GET / HTTP/1.0\r\n\r\n");
        !matches!(third.read(&mut [0]), Ok(1..))
    });
    drop(other);
    server.type_in("list");
    let web = server.endpoints[1].clone();
    while !server.says().contains(&web) {}
    let row = loop {
        let line = server.says();
        if line.contains(&name) {
            break line;
        }
    };
    let id = row.split_whitespace().next().unwrap().to_owned();
    assert!(id.starts_with("2."), "{row}");
    let mut metrics = client_at(
        server.endpoints[2]
            .strip_prefix("tcp://")
            .unwrap()
            .split(' ')
            .next()
            .unwrap(),
    );
    metrics.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut figures = String::new();
    metrics.read_to_string(&mut figures).unwrap();
    assert!(
        figures.contains(&format!("socketserver_requests_active{{server=\"{web}\"}}")),
        "{figures}"
    );
    server.type_in(&format!("kick {id}"));
    assert!(socket.read().is_err());
}

#[test]
fn options_that_do_not_go_together_are_told_so() {
    for (more, reason) in [
        (
            &["--web", "tcp://127.0.0.1:0"][..],
            "write http://HOST:PORT",
        ),
        (&["--web", "https://127.0.0.1:0"], "needs a certificate"),
        (
            &[
                "--web",
                "http://127.0.0.1:0",
                "--tls-cert",
                "a",
                "--tls-key",
                "b",
            ],
            "no endpoint uses TLS",
        ),
        (&["--web-origin", "http://a"], "without a page"),
        (
            &["--web", "http://127.0.0.1:0", "--web-origin", "a"],
            "is no origin",
        ),
        (
            &["--web", "http://127.0.0.1:0", "--web-origin", "null"],
            "is no origin",
        ),
    ] {
        let args = [&["chat", "-l", "tcp://127.0.0.1:0"][..], more].concat();
        let output = run(&mut socketserver(), &args, b"").unwrap();
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        let told = text(&output.stderr);
        assert!(told.contains(reason), "{more:?}: {told}");
    }
}

/// The client is the Python library of that name, which is independent of this project.
#[test]
fn a_client_in_python_is_one_of_them() {
    let server = chat("green", &[]);
    let script = r#"
import sys
try:
    from websockets.sync.client import connect
except ImportError:
    sys.exit(77)
with connect(sys.argv[1], origin=sys.argv[2]) as one, connect(sys.argv[1]) as two:
    names = [socket.recv(timeout=20)[1:] for socket in (one, two)]
    one.send("grüße")
    for socket in (one, two):
        assert socket.recv(timeout=20) == names[0] + " grüße"
    two.send([b"in ", b"parts"])
    for socket in (one, two):
        assert socket.recv(timeout=20) == names[1] + " in parts"
    two.ping().wait(20)
    two.send("quit")
    try:
        two.recv(timeout=20)
    except Exception as error:
        assert error.rcvd.code == 1000, error
"#;
    let url = format!("ws://{}/ws", server.address(1));
    let args = ["-c", script, &url, &server.endpoints[1]];
    let Some(output) = run(&mut Command::new("python3"), args, b"") else {
        return;
    };
    if output.status.code() == Some(77) {
        println!("SKIPPED: there is no `websockets` for python3");
        return;
    }
    assert!(output.status.success(), "{}", text(&output.stderr));
}
