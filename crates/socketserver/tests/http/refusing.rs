//! What is refused over a connection: by its bytes, by its length, and by its slowness.

use std::io::Write;
use std::time::{Duration, Instant};

use socketserver::http::{Http, HttpLimits, Response};
use socketserver::{Concurrency, MinRate, Timeouts};

use crate::client::{Wire, echo, serve, serve_within};
use crate::common::client::Endpoint;
use crate::common::{PATIENCE, eventually};

/// Inputs by which a request has been hidden in another one, with what they are answered. In none of
/// them may the second request be served.
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

fn nothing_is_smuggled<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |request| {
        assert_ne!(request.path(), "/smuggled");
        echo(request)
    });
    for (fields, status) in SMUGGLED {
        let mut wire = Wire::to(&running);
        wire.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\n{fields}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        ));
        let answer = wire.answer(true);
        assert_eq!(
            (answer.status, answer.closes()),
            (status, true),
            "{fields:?}"
        );
        wire.ends();
    }
    assert_eq!(running.handle.counters().failed, 0);
}

fn what_is_too_long_is_told_so<C: Concurrency>(model: C) {
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
        // Much more than anybody reads: the answer arrives all the same.
        (format!("GET /{}", long(500_000)), 414),
        (format!("GET / HTTP/1.1\r\nA: {}", long(500_000)), 431),
    ] {
        let mut wire = Wire::to(&running);
        wire.send(&request);
        assert_eq!(wire.answer(true).status, status, "{} bytes", request.len());
    }
}

fn nonsense_is_answered_and_closed<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |_| Ok(Response::text("")));
    for (bytes, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /\r\n", 400),
        (b"HELO example.org\r\n", 400),
        (b"\r\n\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
    ] {
        let mut wire = Wire::to(&running);
        wire.send(bytes);
        let answer = wire.answer(true);
        assert_eq!(
            (answer.status, answer.closes()),
            (status, true),
            "{bytes:?}"
        );
        assert_eq!(answer.body.iter().filter(|byte| **byte == b'\n').count(), 1);
        wire.ends();
    }
    // Who says nothing is not told anything.
    let wire = Wire::to(&running);
    wire.0.half_close().unwrap();
    wire.ends();
    let mut wire = Wire::to(&running);
    wire.send("GET / HT");
    wire.0.half_close().unwrap();
    assert_eq!(wire.answer(true).status, 400);
    wire.ends();
    // None of them is a failure of the handler, and none is a request that was served.
    eventually(PATIENCE, "all ends", || {
        running.handle.counters().ended == 8
    });
    let counters = running.handle.counters();
    assert_eq!(
        (counters.failed, counters.completed, counters.protocol_error),
        (0, 1, 7)
    );
}

/// A body that is not valid, or too long, ends the connection with the same reason as a head.
fn a_bad_body_is_a_protocol_error<C: Concurrency>(model: C) {
    let http = Http::new().limits(HttpLimits::default().body(10));
    let running = serve(model, http, echo);
    for (n, (body, status)) in [
        ("Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("Content-Length: 11\r\n\r\n", 413),
    ]
    .into_iter()
    .enumerate()
    {
        let mut wire = Wire::to(&running);
        wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}"));
        assert_eq!(wire.answer(true).status, status, "{body}");
        wire.ends();
        let ended = n as u64 + 1;
        eventually(PATIENCE, body, || {
            running.handle.counters().protocol_error == ended
        });
    }
    assert_eq!(running.handle.counters().completed, 0);
}

fn a_head_has_its_time<C: Concurrency>(model: C) {
    let time = Duration::from_millis(300);
    let http = Http::new().limits(HttpLimits::default().header_read_timeout(Some(time)));
    let running = serve(model, http, |_| Ok(Response::text("")));
    let mut wire = Wire::to(&running);
    // Between requests there is no hurry.
    assert_eq!(wire.get("/").status, 200);
    std::thread::sleep(time);
    assert_eq!(wire.get("/").status, 200);
    // Each byte comes soon after the one before, and the head never comes to its end.
    let Endpoint::Tcp(address) = running.endpoint else {
        panic!();
    };
    let mut slow = std::net::TcpStream::connect(address).unwrap();
    let before = Instant::now();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").unwrap();
    let reader = slow.try_clone().unwrap();
    let answered = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut { reader }, &mut text);
        text
    });
    eventually(PATIENCE, "an end", || slow.write_all(b"A: b\r\n").is_err());
    assert!(before.elapsed() >= time, "{:?}", before.elapsed());
    let text = answered.join().unwrap();
    assert!(text.starts_with("HTTP/1.1 408 "), "{text:?}");
}

fn a_head_that_trickles_is_cut<C: Concurrency>(model: C) {
    let rate = MinRate::bytes_per_second(1000).grace(Duration::from_millis(100));
    let timeouts = Timeouts::default().receive_rate(Some(rate));
    let running = serve_within(model, timeouts, Http::new(), echo);
    let mut wire = Wire::to(&running);
    wire.send("GET / HTTP/1.1\r\nHo");
    let answer = wire.answer(true);
    assert_eq!((answer.status, answer.closes()), (408, true));
    wire.ends();
}

crate::common::under_each_model! {
    nothing_is_smuggled
    what_is_too_long_is_told_so
    nonsense_is_answered_and_closed
    a_bad_body_is_a_protocol_error
    a_head_has_its_time
    a_head_that_trickles_is_cut
}
