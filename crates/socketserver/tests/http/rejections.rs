//! Requests that are rejected: invalid, too long, or too slow.

use std::io::Write;
use std::time::{Duration, Instant};

use socketserver::http::{Http, HttpLimits, Response};
use socketserver::{Concurrency, MinRate, Timeouts};

use crate::client::{HttpClient, echo, serve, serve_within};
use crate::common::client::Endpoint;
use crate::common::{TIMEOUT, eventually};

/// Inputs that hide a request in another one, with the status of their answer. The hidden request
/// must never be served.
const SMUGGLED: [(&str, u16); 24] = [
    (
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("Content-Length: 0\r\nContent-Length: 30\r\n\r\n", 400),
    ("Content-Length: 0, 30\r\n\r\n", 400),
    ("Content-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
    ("Content-Length: +0\r\n\r\n", 400),
    ("Content-Length: 0x0\r\n\r\n", 400),
    ("Content-Length: 0 0\r\n\r\n", 400),
    ("Content-Length : 30\r\n\r\n", 400),
    ("Content-Length\t: 30\r\n\r\n", 400),
    ("X: y\r\n Content-Length: 30\r\n\r\n", 400),
    ("X: y\nContent-Length: 30\r\n\r\n", 400),
    ("X: y\rContent-Length: 30\r\n\r\n", 400),
    ("X: y\0\r\nContent-Length: 30\r\n\r\n", 400),
    ("X: y\n\n", 400),
    ("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    ("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", 501),
    ("Transfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\n0\n\n", 400),
    (
        "Transfer-Encoding: chunked\r\n\r\n1;\n\r\na\r\n0\r\n\r\n",
        400,
    ),
    ("Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n", 400),
    (
        "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        400,
    ),
];

fn smuggled_request_is_never_served<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |request| {
        assert_ne!(request.path(), "/smuggled");
        echo(request)
    });
    for (fields, status) in SMUGGLED {
        let mut client = HttpClient::to(&running);
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\n{fields}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        ));
        let answer = client.read_answer(true);
        assert_eq!(
            (answer.status, answer.closes()),
            (status, true),
            "{fields:?}"
        );
        client.expect_end();
    }
    assert_eq!(running.handle.counters().failed, 0);
}

fn too_long_request_gets_the_right_status<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |_| Ok(Response::text("")));
    let long = |n: usize| "x".repeat(n);
    for (request, status) in [
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", long(8000)),
            200,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", long(16_000)),
            200,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(99)),
            200,
        ),
        (format!("GET /{}", long(8192)), 414),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", long(16_384)),
            431,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "A: b\r\n".repeat(101)),
            431,
        ),
        // Much longer than the server reads: the answer arrives nevertheless.
        (format!("GET /{}", long(500_000)), 414),
        (format!("GET / HTTP/1.1\r\nA: {}", long(500_000)), 431),
    ] {
        let mut client = HttpClient::to(&running);
        client.send(&request);
        assert_eq!(
            client.read_answer(true).status,
            status,
            "{} bytes",
            request.len()
        );
    }
}

fn invalid_bytes_are_answered_and_the_connection_closes<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |_| Ok(Response::text("")));
    for (bytes, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /\r\n", 400),
        (b"HELO example.org\r\n", 400),
        (b"\r\n\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
    ] {
        let mut client = HttpClient::to(&running);
        client.send(bytes);
        let answer = client.read_answer(true);
        assert_eq!(
            (answer.status, answer.closes()),
            (status, true),
            "{bytes:?}"
        );
        assert_eq!(answer.body.iter().filter(|byte| **byte == b'\n').count(), 1);
        client.expect_end();
    }
    // A client that sends nothing gets no answer.
    let client = HttpClient::to(&running);
    client.0.half_close().unwrap();
    client.expect_end();
    let mut client = HttpClient::to(&running);
    client.send("GET / HT");
    client.0.half_close().unwrap();
    assert_eq!(client.read_answer(true).status, 400);
    client.expect_end();
    // None of these requests is a failure of the handler, and none counts as served.
    eventually(TIMEOUT, "all connections to end", || {
        running.handle.counters().ended == 8
    });
    let counters = running.handle.counters();
    assert_eq!(
        (counters.failed, counters.completed, counters.protocol_error),
        (0, 1, 7)
    );
}

/// An invalid or too long body ends the connection with the same reason as an invalid head.
fn invalid_body_is_a_protocol_error<C: Concurrency>(model: C) {
    let http = Http::new().limits(HttpLimits::default().body(10));
    let running = serve(model, http, echo);
    for (n, (body, status)) in [
        ("Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("Content-Length: 11\r\n\r\n", 413),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = HttpClient::to(&running);
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}"));
        assert_eq!(client.read_answer(true).status, status, "{body}");
        client.expect_end();
        let ended = n as u64 + 1;
        eventually(TIMEOUT, body, || {
            running.handle.counters().protocol_error == ended
        });
    }
    assert_eq!(running.handle.counters().completed, 0);
}

fn head_ends_at_its_timeout<C: Concurrency>(model: C) {
    let time = Duration::from_millis(300);
    let http = Http::new().limits(HttpLimits::default().header_read_timeout(Some(time)));
    let running = serve(model, http, |_| Ok(Response::text("")));
    let mut client = HttpClient::to(&running);
    // The limit does not apply between requests.
    assert_eq!(client.get("/").status, 200);
    std::thread::sleep(time);
    assert_eq!(client.get("/").status, 200);
    // Each byte arrives soon after the previous one, and the head is never complete.
    let Endpoint::Tcp(address) = running.endpoint else {
        panic!();
    };
    let mut slow = std::net::TcpStream::connect(address).unwrap();
    let before = Instant::now();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").unwrap();
    let reader = slow.try_clone().unwrap();
    let reader_thread = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut { reader }, &mut text);
        text
    });
    eventually(TIMEOUT, "the connection to end", || {
        slow.write_all(b"A: b\r\n").is_err()
    });
    assert!(before.elapsed() >= time, "{:?}", before.elapsed());
    let text = reader_thread.join().unwrap();
    assert!(text.starts_with("HTTP/1.1 408 "), "{text:?}");
}

fn slow_head_ends_at_the_receive_rate<C: Concurrency>(model: C) {
    let rate = MinRate::bytes_per_second(1000).grace(Duration::from_millis(100));
    let timeouts = Timeouts::default().receive_rate(Some(rate));
    let running = serve_within(model, timeouts, Http::new(), echo);
    let mut client = HttpClient::to(&running);
    client.send("GET / HTTP/1.1\r\nHo");
    let answer = client.read_answer(true);
    assert_eq!((answer.status, answer.closes()), (408, true));
    client.expect_end();
}

crate::common::under_each_model! {
    smuggled_request_is_never_served
    too_long_request_gets_the_right_status
    invalid_bytes_are_answered_and_the_connection_closes
    invalid_body_is_a_protocol_error
    head_ends_at_its_timeout
    slow_head_ends_at_the_receive_rate
}
