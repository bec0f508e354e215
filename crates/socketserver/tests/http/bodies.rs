//! Bodies of requests: their arrival, their limits, and unread bodies.

use std::io::Read;
use std::time::Duration;

use socketserver::http::{Http, HttpLimits, Problem, Request, Response, StatusCode};
use socketserver::{Concurrency, MinRate, Result, Timeouts};

use crate::client::{HttpClient, echo, serve, serve_within};
use crate::common::{TIMEOUT, eventually};

fn post(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

fn body_may_arrive_in_any_parts<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |request| {
        let mut answer = echo(request)?;
        let digest = request.trailers().get("digest");
        if let Some(digest) = digest {
            answer.headers_mut().insert("x-digest", digest.clone());
        }
        Ok(answer)
    });
    let mut client = HttpClient::to(&running);
    let long = "x".repeat(100_000);
    assert_eq!(client.ask(&(post(100_000) + &long)).text(), long);
    for byte in format!("{}abc", post(3)).bytes() {
        client.send([byte]);
    }
    assert_eq!(client.read_answer(true).text(), "abc");
    for byte in format!("{CHUNKED}2;a\r\nab\r\n1\r\nc\r\n0\r\nDigest: d\r\n\r\n").bytes() {
        client.send([byte]);
    }
    let answer = client.read_answer(true);
    assert_eq!(
        (answer.text(), answer.field("x-digest")),
        ("abc".into(), Some("d"))
    );
}

/// The server sends `100 Continue` when the handler reads the body, and not before.
fn expecting_client_gets_100_continue<C: Concurrency>(model: C) {
    let running = serve(
        model,
        Http::new().limits(HttpLimits::default().body(10)),
        |request| match request.path() {
            "/echo" => echo(request),
            _ => Ok(Response::text("unread")),
        },
    );
    let expecting = |path: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut client = HttpClient::to(&running);
    for _ in 0..2 {
        assert_eq!(client.ask(&expecting("/echo", 3)).status, 100);
        client.send("abc");
        assert_eq!(client.read_answer(true).text(), "abc");
    }
    // A request without a body gets no `100 Continue`.
    assert_eq!(client.ask(&expecting("/echo", 0)).status, 200);
    // A body that is too long is rejected before it is sent.
    assert_eq!(client.ask(&expecting("/echo", 11)).status, 413);
    client.expect_end();
    // The handler does not read the body. The server cannot know whether the client sends it.
    let mut client = HttpClient::to(&running);
    let answer = client.ask(&expecting("/", 3));
    assert_eq!((answer.status, answer.closes()), (200, true));
    client.expect_end();
    let mut client = HttpClient::to(&running);
    let other = expecting("/echo", 3).replace("100-continue", "other");
    assert_eq!(client.ask(&other).status, 417);
    client.expect_end();
    // HTTP/1.0 has no `100 Continue`.
    let mut client = HttpClient::to(&running);
    let old = expecting("/echo", 3).replace("1.1", "1.0") + "abc";
    assert_eq!(client.ask(&old).text(), "abc");
}

fn limits_apply_to_both_framings<C: Concurrency>(model: C) {
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
    let mut client = HttpClient::to(&running);
    assert_eq!(client.ask(&(post(10) + "0123456789")).status, 200);
    assert_eq!(client.ask(&chunks(2)).status, 200);
    let raised = |text: String| text.replace("POST /", "POST /?20");
    assert_eq!(client.ask(&raised(post(11) + "0123456789a")).status, 200);
    assert_eq!(client.ask(&raised(chunks(3))).status, 200);
    for request in [post(11), post(usize::MAX), chunks(3), raised(chunks(5))] {
        let mut client = HttpClient::to(&running);
        let answer = client.ask(&request);
        assert_eq!((answer.status, answer.closes()), (413, true), "{request}");
        client.expect_end();
    }
}

/// The rest that the handler leaves is read and discarded up to a limit. It is never parsed as a
/// request.
fn unread_body_is_discarded<C: Concurrency>(model: C) {
    let limits = HttpLimits::default().max_discard(100);
    let running = serve(model, Http::new().limits(limits), |request| {
        let mut some = [0; 3];
        let wanted = request.path().len() - 1;
        request.body().read_exact(&mut some[..wanted])?;
        Ok(Response::text(request.path()))
    });
    let inner = "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = HttpClient::to(&running);
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
            assert_eq!(client.ask(&request).text(), path);
        }
    }
    assert_eq!(client.ask(&(post(200) + inner)).text(), "/");
    client.expect_end();
    let mut client = HttpClient::to(&running);
    let much = CHUNKED.to_owned() + "40\r\n" + &"x".repeat(64) + "\r\n40\r\n";
    assert_eq!(client.ask(&much).text(), "/");
    client.expect_end();
}

fn malformed_body_is_answered<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), echo);
    for body in ["g\r\n", "3\r\nabcd\r\n", "3\nabc\r\n", "0\r\nA : b\r\n\r\n"] {
        let mut client = HttpClient::to(&running);
        let answer = client.ask(&(CHUNKED.to_owned() + body));
        assert_eq!((answer.status, answer.closes()), (400, true), "{body:?}");
        client.expect_end();
    }
    // The sender ends the body early.
    for request in [post(5) + "abc", CHUNKED.to_owned() + "5\r\nabc"] {
        let mut client = HttpClient::to(&running);
        client.send(&request);
        client.0.half_close().unwrap();
        assert_eq!(client.read_answer(true).status, 400, "{request:?}");
        client.expect_end();
    }
    // A handler that accepts a partial body: the connection has no next request.
    let lenient = |request: &mut Request<'_>| -> Result<Response> {
        let mut text = Vec::new();
        let read = request.body().read_to_end(&mut text);
        let status = Problem::of(&read.unwrap_err()).unwrap().status();
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(request.body().read(&mut [0]).is_err());
        Ok(Response::bytes(text))
    };
    let running = serve(socketserver::Threading::new(), Http::new(), lenient);
    let mut client = HttpClient::to(&running);
    let answer = client.ask(&(CHUNKED.to_owned() + "3\r\nabc\r\nx\r\n"));
    assert_eq!((answer.text(), answer.closes()), ("abc".into(), true));
    client.expect_end();
}

fn slow_body_ends_at_the_receive_rate<C: Concurrency>(model: C) {
    let rate = MinRate::bytes_per_second(1000).grace(Duration::from_millis(100));
    let timeouts = Timeouts::default().receive_rate(Some(rate));
    let running = serve_within(model, timeouts, Http::new(), echo);
    let mut client = HttpClient::to(&running);
    client.send(post(10) + "abc");
    assert_eq!(client.read_answer(true).status, 408);
    client.expect_end();
    assert_eq!(running.handle.counters().failed, 0);
}

crate::common::under_each_model! {
    body_may_arrive_in_any_parts
    expecting_client_gets_100_continue
    limits_apply_to_both_framings
    unread_body_is_discarded
    malformed_body_is_answered
    slow_body_ends_at_the_receive_rate
}

/// A handler that stops in the middle of a large chunk does not bypass the limit on discarded
/// bytes.
#[test]
fn too_long_rest_of_a_chunk_closes_the_connection() {
    let limits = HttpLimits::default().max_discard(1000);
    let running = serve(
        socketserver::Threading::new(),
        Http::new().limits(limits),
        |request| {
            request.body().read_exact(&mut [0; 10])?;
            Ok(Response::text("enough"))
        },
    );
    let mut client = HttpClient::to(&running);
    client.send(format!("{CHUNKED}80000\r\n{}", "x".repeat(4096)));
    assert_eq!(client.read_answer(true).text(), "enough");
    // The server closes at once, and does not wait for the rest.
    let counters = || running.handle.counters();
    eventually(TIMEOUT, "the connection to close", || counters().ended == 1);
    assert_eq!(counters().completed, 1);
}

/// A lower limit that is set in the middle of a chunk applies to the rest of the chunk.
#[test]
fn limit_applies_within_a_chunk() {
    let running = serve(socketserver::Threading::new(), Http::new(), |request| {
        request.body().read_exact(&mut [0; 10])?;
        request.limit_body(5);
        let mut rest = Vec::new();
        request.body().read_to_end(&mut rest)?;
        Ok(Response::text(rest.len().to_string()))
    });
    let mut client = HttpClient::to(&running);
    client.send(format!("{CHUNKED}100\r\n{}\r\n0\r\n\r\n", "x".repeat(256)));
    assert_eq!(client.read_answer(true).status, 413);
}
