//! Bodies of requests: how they arrive, how they are limited, and what happens to those that nobody
//! reads.

use std::io::Read;
use std::time::Duration;

use socketserver::http::{Http, HttpLimits, Problem, Request, Response, StatusCode};
use socketserver::{Concurrency, MinRate, Result, Timeouts};

use crate::client::{Wire, echo, serve, serve_within};
use crate::common::{PATIENCE, eventually};

fn post(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

fn bodies_arrive_in_any_pieces<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |request| {
        let mut answer = echo(request)?;
        let digest = request.trailers().get("digest");
        if let Some(digest) = digest {
            answer.headers_mut().insert("x-digest", digest.clone());
        }
        Ok(answer)
    });
    let mut wire = Wire::to(&running);
    let long = "x".repeat(100_000);
    assert_eq!(wire.ask(&(post(100_000) + &long)).text(), long);
    for byte in format!("{}abc", post(3)).bytes() {
        wire.send([byte]);
    }
    assert_eq!(wire.answer(true).text(), "abc");
    for byte in format!("{CHUNKED}2;a\r\nab\r\n1\r\nc\r\n0\r\nDigest: d\r\n\r\n").bytes() {
        wire.send([byte]);
    }
    let answer = wire.answer(true);
    assert_eq!(
        (answer.text(), answer.field("x-digest")),
        ("abc".into(), Some("d"))
    );
}

/// The client hears that it may go on when the handler wants its body, and not before.
fn who_waits_for_a_word_gets_one<C: Concurrency>(model: C) {
    let running = serve(
        model,
        Http::new().limits(HttpLimits::default().body(10)),
        |request| match request.path() {
            "/echo" => echo(request),
            _ => Ok(Response::text("no need")),
        },
    );
    let waiting = |path: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut wire = Wire::to(&running);
    for _ in 0..2 {
        assert_eq!(wire.ask(&waiting("/echo", 3)).status, 100);
        wire.send("abc");
        assert_eq!(wire.answer(true).text(), "abc");
    }
    // It waits for nothing if there is nothing to send.
    assert_eq!(wire.ask(&waiting("/echo", 0)).status, 200);
    // Too long: no use in sending it.
    assert_eq!(wire.ask(&waiting("/echo", 11)).status, 413);
    wire.ends();
    // Not wanted: whether it comes all the same, nobody knows.
    let mut wire = Wire::to(&running);
    let answer = wire.ask(&waiting("/", 3));
    assert_eq!((answer.status, answer.closes()), (200, true));
    wire.ends();
    let mut wire = Wire::to(&running);
    let other = waiting("/echo", 3).replace("100-continue", "a-miracle");
    assert_eq!(wire.ask(&other).status, 417);
    wire.ends();
    // HTTP/1.0 does not know it.
    let mut wire = Wire::to(&running);
    let old = waiting("/echo", 3).replace("1.1", "1.0") + "abc";
    assert_eq!(wire.ask(&old).text(), "abc");
}

fn limits_hold_whatever_the_framing<C: Concurrency>(model: C) {
    let running = serve(
        model,
        Http::new().limits(HttpLimits::default().body(10)),
        |request| {
            if let Some(limit) = request.query().and_then(|q| q.parse().ok()) {
                request.limit_body(limit);
            }
            echo(request)
        },
    );
    let chunks = |count: usize| CHUNKED.to_owned() + &"5\r\nabcde\r\n".repeat(count) + "0\r\n\r\n";
    let mut wire = Wire::to(&running);
    assert_eq!(wire.ask(&(post(10) + "0123456789")).status, 200);
    assert_eq!(wire.ask(&chunks(2)).status, 200);
    let raised = |text: String| text.replace("POST /", "POST /?20");
    assert_eq!(wire.ask(&raised(post(11) + "0123456789a")).status, 200);
    assert_eq!(wire.ask(&raised(chunks(3))).status, 200);
    for request in [post(11), post(usize::MAX), chunks(3), raised(chunks(5))] {
        let mut wire = Wire::to(&running);
        let answer = wire.ask(&request);
        assert_eq!((answer.status, answer.closes()), (413, true), "{request}");
        wire.ends();
    }
}

/// What the handler leaves is read, if it is not too much; and is never taken for a request.
fn what_is_left_is_thrown_away<C: Concurrency>(model: C) {
    let limits = HttpLimits::default().max_discard(100);
    let running = serve(model, Http::new().limits(limits), |request| {
        let mut some = [0; 3];
        let wanted = request.path().len() - 1;
        request.body().read_exact(&mut some[..wanted])?;
        Ok(Response::text(request.path()))
    });
    let inner = "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut wire = Wire::to(&running);
    for path in ["/", "/a", "/abc"] {
        let sized = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}",
            inner.len()
        );
        let chunked = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n",
            inner.len()
        );
        for request in [sized, chunked] {
            assert_eq!(wire.ask(&request).text(), path);
        }
    }
    assert_eq!(wire.ask(&(post(200) + inner)).text(), "/");
    wire.ends();
    let mut wire = Wire::to(&running);
    let much = CHUNKED.to_owned() + "40\r\n" + &"x".repeat(64) + "\r\n40\r\n";
    assert_eq!(wire.ask(&much).text(), "/");
    wire.ends();
}

fn what_is_malformed_is_answered<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), echo);
    for body in ["g\r\n", "3\r\nabcd\r\n", "3\nabc\r\n", "0\r\nA : b\r\n\r\n"] {
        let mut wire = Wire::to(&running);
        let answer = wire.ask(&(CHUNKED.to_owned() + body));
        assert_eq!((answer.status, answer.closes()), (400, true), "{body:?}");
        wire.ends();
    }
    // Cut short by its sender.
    for request in [post(5) + "abc", CHUNKED.to_owned() + "5\r\nabc"] {
        let mut wire = Wire::to(&running);
        wire.send(&request);
        wire.0.half_close().unwrap();
        assert_eq!(wire.answer(true).status, 400, "{request:?}");
        wire.ends();
    }
    // A handler that takes what there was: the connection has no next request.
    let lenient = |request: &mut Request<'_>| -> Result<Response> {
        let mut text = Vec::new();
        let read = request.body().read_to_end(&mut text);
        let status = Problem::of(&read.unwrap_err()).unwrap().status();
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(request.body().read(&mut [0]).is_err());
        Ok(Response::bytes(text))
    };
    let running = serve(socketserver::Threading::new(), Http::new(), lenient);
    let mut wire = Wire::to(&running);
    let answer = wire.ask(&(CHUNKED.to_owned() + "3\r\nabc\r\nx\r\n"));
    assert_eq!((answer.text(), answer.closes()), ("abc".into(), true));
    wire.ends();
}

fn a_body_that_trickles_is_cut<C: Concurrency>(model: C) {
    let rate = MinRate::bytes_per_second(1000).grace(Duration::from_millis(100));
    let timeouts = Timeouts::default().receive_rate(Some(rate));
    let running = serve_within(model, timeouts, Http::new(), echo);
    let mut wire = Wire::to(&running);
    wire.send(post(10) + "abc");
    assert_eq!(wire.answer(true).status, 408);
    wire.ends();
    assert_eq!(running.handle.counters().failed, 0);
}

crate::common::under_each_model! {
    bodies_arrive_in_any_pieces
    who_waits_for_a_word_gets_one
    limits_hold_whatever_the_framing
    what_is_left_is_thrown_away
    what_is_malformed_is_answered
    a_body_that_trickles_is_cut
}

/// A handler that stops in the middle of a large chunk does not undo the limit on what is thrown away.
#[test]
fn the_rest_of_a_chunk_that_is_too_much_closes() {
    let limits = HttpLimits::default().max_discard(1000);
    let running = serve(
        socketserver::Threading::new(),
        Http::new().limits(limits),
        |request| {
            request.body().read_exact(&mut [0; 10])?;
            Ok(Response::text("enough"))
        },
    );
    let mut wire = Wire::to(&running);
    wire.send(format!("{CHUNKED}80000\r\n{}", "x".repeat(4096)));
    assert_eq!(wire.answer(true).text(), "enough");
    // It closes at once, and does not wait for the rest.
    let counters = || running.handle.counters();
    eventually(PATIENCE, "it to close", || counters().ended == 1);
    assert_eq!(counters().completed, 1);
}

/// A smaller limit that comes in the middle of a chunk holds for the rest of it.
#[test]
fn a_limit_within_a_chunk_is_one() {
    let running = serve(socketserver::Threading::new(), Http::new(), |request| {
        request.body().read_exact(&mut [0; 10])?;
        request.limit_body(5);
        let mut rest = Vec::new();
        request.body().read_to_end(&mut rest)?;
        Ok(Response::text(rest.len().to_string()))
    });
    let mut wire = Wire::to(&running);
    wire.send(format!("{CHUNKED}100\r\n{}\r\n0\r\n\r\n", "x".repeat(256)));
    assert_eq!(wire.answer(true).status, 413);
}
