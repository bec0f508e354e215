//! Accepted and rejected handshakes.

use std::io::{BufRead, Write};

use socketserver::http::{Http, Request, Response};
use socketserver::transport::Tcp;
use socketserver::websocket::{Message, OriginPolicy, WebSocket, WebSocketUpgrade};
use socketserver::{Concurrency, Connection, RequestHandler, Result, Server};

use crate::common::running::Running;
use crate::peer::{FIN, HANDSHAKE, Peer, Setup, TEXT, echo, frame, serve_echo};

/// The key and its answer are from RFC 6455, 1.3.
fn handshake_answer_equals_that_of_the_rfc<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let mut peer = Peer(running.client());
    peer.send(HANDSHAKE.as_bytes());
    // The client offers extensions, and the server accepts none.
    peer.send(b"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: x\r\n\r\n");
    let head = peer.head();
    assert!(
        head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
        "{head}"
    );
    for field in [
        "\r\nupgrade: websocket\r\n",
        "\r\nConnection: Upgrade\r\n",
        "\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
    ] {
        assert!(head.contains(field), "{field:?} in {head}");
    }
    for absent in ["xtensions", "rotocol:", "ontent-", "ransfer-"] {
        assert!(!head.contains(absent), "{absent:?} in {head}");
    }
    peer.send_text("hello");
    assert_eq!(peer.frame().text(), "hello");
}

fn frames_after_the_request_are_not_lost<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let first = frame(FIN | TEXT, b"first");
    let second = frame(FIN | TEXT, b"second");
    let mut peer = Peer::open_with(&running, &[&first[..], &second[..3]].concat());
    assert_eq!(peer.frame().text(), "first");
    peer.send(&second[3..]);
    assert_eq!(peer.frame().text(), "second");
}

/// Each invalid request is answered, and the connection stays open.
fn invalid_handshake_is_rejected<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let mut peer = Peer(running.client());
    let mut ask = |request: &str| {
        peer.send(request.as_bytes());
        let head = peer.head();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        for _ in 0..length.unwrap().parse().unwrap() {
            peer.0.read(&mut [0]).unwrap();
        }
        head
    };
    let good = format!("{HANDSHAKE}\r\n");
    for (what, with, status) in [
        ("GET /", "POST /", 405),
        ("GET /", "PUT /", 405),
        ("Upgrade: websocket\r\n", "", 426),
        ("Upgrade: websocket", "Upgrade: h2c", 426),
        ("Connection: Upgrade\r\n", "", 426),
        ("Version: 13", "Version: 8", 426),
        (
            "Version: 13",
            "Version: 13\r\nSec-WebSocket-Version: 13",
            426,
        ),
        ("Sec-WebSocket-Version: 13\r\n", "", 426),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", 400),
        ("Host: a", "Host: a\r\nOrigin: http://b", 403),
        ("Host: a", "Host: a\r\nOrigin: null", 403),
        (
            "Host: a",
            "Host: a\r\nOrigin: http://a\r\nOrigin: http://a",
            403,
        ),
    ] {
        assert!(good.contains(what));
        let head = ask(&good.replacen(what, with, 1));
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{with}: {head}"
        );
        if status == 426 {
            assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
            assert!(head.contains("\r\nConnection: Upgrade\r\n"), "{head}");
        }
        assert_eq!(
            head.contains("sec-websocket-version: 13"),
            what.contains("Version"),
            "{head}"
        );
    }
    // A valid request opens a WebSocket on the same connection. Names of options are
    // case-insensitive.
    let odd = good
        .replace("Upgrade: websocket", "upgrade: h2c, WebSocket")
        .replace("Connection: Upgrade", "Connection: keep-alive, UPGRADE");
    peer.send(odd.as_bytes());
    assert!(peer.head().starts_with("HTTP/1.1 101 "));
}

fn upgrade_with_a_body_or_http_1_0_is_rejected<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    for (request, status) in [
        (format!("{HANDSHAKE}Content-Length: 3\r\n\r\nabc"), "400"),
        (
            format!("{HANDSHAKE}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            "400",
        ),
        (
            format!("{HANDSHAKE}\r\n").replace("HTTP/1.1", "HTTP/1.0"),
            "426",
        ),
    ] {
        let mut peer = Peer(running.client());
        peer.send(request.as_bytes());
        assert_eq!(&peer.head()[9..12], status, "{request}");
    }
}

fn origins_are_admitted_by_policy<C: Concurrency>(model: C) {
    let only = || OriginPolicy::allow(["https://a.example", "http://b.example:8000"]).unwrap();
    let cases: [(OriginPolicy, &[(&str, bool)]); 3] = [
        (
            OriginPolicy::same_origin(),
            &[
                ("", true),
                ("Origin: http://a\r\n", true),
                ("Origin: https://a\r\n", true),
                ("Origin: http://A:80\r\n", true),
                ("Origin: http://a:81\r\n", false),
                ("Origin: http://a.b\r\n", false),
                ("Origin: http://b/a\r\n", false),
                ("Origin: file://\r\n", false),
                ("Origin: a\r\n", false),
            ],
        ),
        (
            only(),
            &[
                ("", true),
                ("Origin: https://a.example\r\n", true),
                ("Origin: https://a.example:443\r\n", true),
                ("Origin: http://a.example\r\n", false),
                ("Origin: http://b.example:8000\r\n", true),
                ("Origin: http://b.example\r\n", false),
                // The server's own origin is not in the list.
                ("Origin: http://a\r\n", false),
            ],
        ),
        (
            OriginPolicy::any(),
            &[
                ("Origin: http://evil\r\n", true),
                ("Origin: null\r\n", true),
            ],
        ),
    ];
    let all: Vec<_> = cases
        .iter()
        .map(|(origins, _)| WebSocketUpgrade::new().origins(origins.clone()))
        .collect();
    let site = Http::new().handler_fn(move |request: &mut Request<'_>| {
        let number: usize = request.path()[1..].parse()?;
        all[number].upgrade(request, echo)
    });
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .bind("127.0.0.1:0", site);
    let running = Running::start(server.unwrap());
    for (number, (origins, fields)) in cases.iter().enumerate() {
        for (field, is_admitted) in *fields {
            let mut peer = Peer(running.client());
            let request = format!("{HANDSHAKE}{field}\r\n");
            let request = request.replacen("GET /", &format!("GET /{number}"), 1);
            peer.send(request.as_bytes());
            let status = &peer.head()[9..12];
            let expected = if *is_admitted { "101" } else { "403" };
            assert_eq!(status, expected, "{field:?} with {origins:?}");
        }
    }
}

fn preferred_common_protocol_is_selected<C: Concurrency>(model: C) {
    let mut setup = Setup::new(model);
    setup.sockets = WebSocketUpgrade::new().protocols(&["v2", "v1"]);
    let running = setup.serve(|| {
        |socket: &mut WebSocket<'_>, _: Message| {
            let protocol = socket.protocol().unwrap_or("none");
            Ok(socket.send(protocol)?)
        }
    });
    for (asked, got) in [
        ("", "none"),
        ("Sec-WebSocket-Protocol: v3\r\n", "none"),
        ("Sec-WebSocket-Protocol: v1\r\n", "v1"),
        ("Sec-WebSocket-Protocol: v1, v2\r\n", "v2"),
        (
            "Sec-WebSocket-Protocol: v3\r\nSec-WebSocket-Protocol: v2\r\n",
            "v2",
        ),
    ] {
        let mut peer = Peer(running.0.client());
        peer.send(format!("{HANDSHAKE}{asked}\r\n").as_bytes());
        let head = peer.head();
        let field = format!("\r\nsec-websocket-protocol: {got}\r\n");
        assert_eq!(head.contains(&field), got != "none", "{head}");
        peer.send_text("?");
        assert_eq!(peer.frame().text(), got);
    }
}

/// Another protocol than WebSocket, through the HTTP layer only.
fn upgrade_to_another_protocol_is_possible<C: Concurrency>(model: C) {
    struct Shout(u32);
    impl RequestHandler<Connection> for Shout {
        fn setup(&mut self, conn: &mut Connection) -> Result<()> {
            Ok(conn.write_all(b"HELLO\n")?)
        }
        fn handle(&mut self, conn: &mut Connection) -> Result<()> {
            let mut line = String::new();
            if conn.read_line(&mut line)? > 0 {
                self.0 += 1;
                write!(conn, "{} {}", self.0, line.to_uppercase())?;
                conn.suspend_until_readable();
            }
            Ok(())
        }
        fn finish(&mut self, conn: &mut Connection) -> Result<()> {
            Ok(conn.write_all(b"BYE\n")?)
        }
    }
    let server = Server::<Tcp, C>::builder().concurrency(model).bind(
        "127.0.0.1:0",
        Http::new().handler_fn(|_: &mut Request<'_>| Response::upgrade("shout/1", Shout(0))),
    );
    let running = Running::start(server.unwrap());
    let mut peer = Peer(running.client());
    peer.send(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\n");
    let head = peer.head();
    assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
    let mut peer = Peer(running.client());
    peer.send(
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: shout/1\r\nConnection: Upgrade\r\n\r\nwith the request\n",
    );
    assert!(peer.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(peer.0.receive_line().unwrap().unwrap(), "HELLO");
    assert_eq!(
        peer.0.receive_line().unwrap().unwrap(),
        "1 WITH THE REQUEST"
    );
    assert_eq!(peer.0.ask("later"), "2 LATER");
    peer.0.half_close().unwrap();
    assert_eq!(peer.0.read_rest().unwrap(), b"BYE\n");
}

crate::common::under_each_model! {
    handshake_answer_equals_that_of_the_rfc
    frames_after_the_request_are_not_lost
    invalid_handshake_is_rejected
    upgrade_with_a_body_or_http_1_0_is_rejected
    origins_are_admitted_by_policy
    preferred_common_protocol_is_selected
    upgrade_to_another_protocol_is_possible
}
