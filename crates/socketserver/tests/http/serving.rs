//! Requests and answers under each model.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use socketserver::http::{Handler, Http, Method, Problem, Request, Response, StatusCode};
use socketserver::transport::{Tcp, UnixStream};
use socketserver::{Concurrency, Result, Sequential, Server};

use crate::client::{HttpClient, echo, serve, serve_handler};
use crate::common::running::Running;
use crate::common::{TIMEOUT, eventually};

/// Answers with the method and the target of the request.
fn echo_target(request: &mut Request<'_>) -> Result<Response> {
    let text = format!("{} {}", request.method(), request.uri());
    Ok(Response::text(text))
}

/// One handler serves all requests of a connection.
fn one_handler_serves_a_hundred_requests_of_a_connection<C: Concurrency>(model: C) {
    struct Counter(usize);
    impl Handler for Counter {
        fn methods(&self) -> &[Method] {
            &[Method::GET]
        }
        fn get(&mut self, _: &mut Request<'_>) -> Result<Response> {
            self.0 += 1;
            Ok(Response::text(self.0.to_string()))
        }
    }
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let running = serve_handler(model, move || {
        count.fetch_add(1, Ordering::SeqCst);
        Counter(0)
    });
    let mut client = HttpClient::to(&running);
    for n in 1..=100 {
        let answer = client.get("/");
        assert_eq!((answer.status, answer.text()), (200, n.to_string()));
        assert_eq!(answer.field("connection"), None);
    }
    assert_eq!(made.load(Ordering::SeqCst), 1);
    assert_eq!(running.handle.counters().accepted, 1);
}

fn pipelined_requests_are_answered_in_order<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |request| {
        let mut body = String::new();
        request.body().read_to_string(&mut body)?;
        Ok(Response::text(format!("{} {body}", request.path())))
    });
    let mut client = HttpClient::to(&running);
    let mut all = String::new();
    for n in 0..50 {
        all += &format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n");
        all += &format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        all += &format!(
            "POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nd\r\n0\r\n\r\n"
        );
    }
    // Split in the middle of a request.
    let (one, two) = all.split_at(all.len() / 2 + 3);
    client.send(one);
    client.send(two);
    for n in 0..50 {
        for body in ["", "abc", "d"] {
            assert_eq!(client.read_answer(true).text(), format!("/{n} {body}"));
        }
    }
}

/// RFC 9112, 9.3: persistence of connections.
fn connection_persists_as_requested<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), echo_target);
    for (version, options, persists) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: a, CLOSE ,b\r\n", false),
        ("1.1", "Connection: x\r\nConnection: close\r\n", false),
        ("1.1", "Connection: keep-alive, close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
    ] {
        let mut client = HttpClient::to(&running);
        let request = format!("GET / HTTP/{version}\r\nHost: a\r\n{options}\r\n");
        let answer = client.ask(&request);
        assert_eq!(answer.closes(), !persists, "{request:?}");
        if persists {
            let expected = (version == "1.0").then_some("keep-alive");
            assert_eq!(answer.field("connection"), expected);
            assert_eq!(client.ask(&request).status, 200);
        } else {
            client.expect_end();
        }
    }
}

fn methods_are_dispatched_to_the_handler<C: Concurrency>(model: C) {
    struct Resource(Arc<Mutex<String>>);
    impl Handler for Resource {
        fn methods(&self) -> &[Method] {
            &[Method::GET, Method::PUT]
        }
        fn get(&mut self, _: &mut Request<'_>) -> Result<Response> {
            Ok(Response::text(self.0.lock().unwrap().clone()))
        }
        fn put(&mut self, request: &mut Request<'_>) -> Result<Response> {
            let mut text = String::new();
            request.body().read_to_string(&mut text)?;
            *self.0.lock().unwrap() = text;
            Ok(Response::new(StatusCode::NO_CONTENT))
        }
    }
    let resource = Arc::new(Mutex::new(String::new()));
    let running = serve_handler(model, move || Resource(resource.clone()));
    let mut client = HttpClient::to(&running);
    let put = client.ask("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!((put.status, put.field("content-length")), (204, None));
    let get = client.get("/");
    assert_eq!(get.text(), "abc");
    let head = client.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let but_date = |head: &str| {
        let lines = head.lines().filter(|line| !line.starts_with("Date"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(but_date(&head.head), but_date(&get.head));
    for method in ["POST", "DELETE", "PATCH", "TRACE"] {
        let answer = client.ask(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.field("allow"), Some("GET, PUT, HEAD, OPTIONS"));
    }
    let options = client.ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(
        (options.status, options.field("allow")),
        (204, Some("GET, PUT, HEAD, OPTIONS"))
    );
    assert_eq!(client.ask("BREW / HTTP/1.1\r\nHost: a\r\n\r\n").status, 501);
    assert_eq!(client.get("/").text(), "abc");
}

/// Also if the handler answers any method with a success.
fn connect_is_rejected<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), echo_target);
    let mut client = HttpClient::to(&running);
    // Bytes after a CONNECT request are not parsed as a request.
    let early = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let tunnel = client.ask(&format!(
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n{early}"
    ));
    assert_eq!((tunnel.status, tunnel.closes()), (501, true));
    client.expect_end();
}

/// Each kind of body, for each kind of client.
fn body_framing_fits_the_version_of_the_client<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |request| {
        let long = "0123456789".repeat(10_000);
        Ok(match request.path() {
            "/bytes" => Response::bytes(long),
            "/reader" => Response::reader(io::Cursor::new(long + "and more"), 100_000),
            "/stream" => Response::stream(io::Cursor::new(long)),
            "/none" => Response::stream(io::empty()),
            _ => return Err(Problem::new(StatusCode::NOT_FOUND, "no such path").into()),
        })
    });
    let mut client = HttpClient::to(&running);
    for path in ["/bytes", "/reader", "/stream", "/none"] {
        let answer = client.get(path);
        let length = if path == "/none" { 0 } else { 100_000 };
        assert_eq!((answer.status, answer.body.len()), (200, length), "{path}");
        let is_framed = !matches!(path, "/stream" | "/none");
        assert_eq!(answer.field("content-length").is_some(), is_framed);
        assert_eq!(answer.field("transfer-encoding").is_none(), is_framed);
        let head = client.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(head.field("content-length"), answer.field("content-length"));

        let mut http_1_0 = HttpClient::to(&running);
        let answer = http_1_0.ask(&format!(
            "GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        ));
        assert_eq!(answer.body.len(), length, "{path}");
        assert_eq!(answer.field("transfer-encoding"), None);
        assert_eq!(answer.closes(), !is_framed, "{path}");
        if is_framed {
            // The answer has a length, so that the connection may stay open.
            let again = http_1_0.ask(&format!("GET {path} HTTP/1.0\r\n\r\n"));
            assert_eq!(again.body.len(), length);
        }
        http_1_0.expect_end();
    }
    let missing = client.get("/missing");
    assert_eq!((missing.status, missing.closes()), (404, false));
    assert_eq!(missing.text(), "404 Not Found: no such path\n");
}

fn handler_cannot_set_framing_headers<C: Concurrency>(model: C) {
    let running = serve(
        model,
        Http::new().server_name("test/1".parse().unwrap()),
        |_| {
            Response::text("abc")
                .header("content-length", "7")?
                .header("transfer-encoding", "chunked")?
                .header("connection", "keep-alive")?
                .header("date", "never")?
                .header("x-mine", "1")
        },
    );
    let mut client = HttpClient::to(&running);
    let answer = client.get("/");
    assert_eq!(answer.text(), "abc");
    for (name, value) in [
        ("content-length", Some("3")),
        ("transfer-encoding", None),
        ("connection", None),
        ("server", Some("test/1")),
        ("x-mine", Some("1")),
    ] {
        assert_eq!(answer.field(name), value, "{name}");
        assert!(
            answer.head.to_lowercase().matches(name).count() <= 1,
            "{name}"
        );
    }
    assert!(answer.field("date").unwrap().ends_with(" GMT"));
    assert!(Response::text("").header("x", "a\r\nb: c").is_err());
}

fn drain_closes_idle_connections_and_announces_the_close_to_others<C: Concurrency>(model: C) {
    let (entered_tx, entered_rx) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let running = serve(model, Http::new(), move |request| {
        if request.path() == "/slow" {
            entered_tx.send(())?;
            released.lock().unwrap().recv_timeout(TIMEOUT)?;
        }
        echo_target(request)
    });
    let mut idle = HttpClient::to(&running);
    assert_eq!(idle.get("/").status, 200);
    let mut busy = HttpClient::to(&running);
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    entered_rx.recv_timeout(TIMEOUT).unwrap();
    let before = Instant::now();
    running.handle.drain(TIMEOUT);
    // Under the green model, its worker may be the one that is blocked here.
    eventually(TIMEOUT, "the drain", || running.handle.is_draining());
    release.send(()).unwrap();
    let answer = busy.read_answer(true);
    assert_eq!((answer.status, answer.closes()), (200, true));
    busy.expect_end();
    idle.expect_end();
    running.wait_until_stopped().unwrap();
    assert!(before.elapsed() < TIMEOUT / 2);
}

/// A connection without a request does not occupy a worker.
#[test]
fn idle_connections_do_not_occupy_workers() {
    let model = socketserver::Pooled::new().workers(1);
    let running = serve(model, Http::new(), echo_target);
    let mut clients: Vec<_> = (0..20).map(|_| HttpClient::to(&running)).collect();
    for _ in 0..3 {
        for client in &mut clients {
            assert_eq!(client.get("/").status, 200);
        }
    }
}

#[test]
fn sequential_server_without_keep_alive_serves_all_clients() {
    let running = serve(Sequential, Http::new().keep_alive(false), echo_target);
    for _ in 0..3 {
        let mut client = HttpClient::to(&running);
        assert!(client.get("/").closes());
        client.expect_end();
    }
}

#[test]
fn http_works_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::<UnixStream, Sequential>::builder()
        .bind(dir.path().join("s"), Http::new().handler_fn(echo));
    let running = Running::start(server.unwrap());
    let mut client = HttpClient::to(&running);
    let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(answer.text(), "abc");
}

/// The entries of an access log.
#[test]
fn responses_are_reported_to_the_log() {
    let entries = Arc::new(Mutex::new(Vec::new()));
    let log = entries.clone();
    let http = Http::new().on_response(move |response| {
        let path = response.request.map(|head| head.path().to_owned());
        let status = response.status.as_u16();
        log.lock()
            .unwrap()
            .push((path, status, response.sent, response.is_complete));
    });
    let server = Server::<Tcp, Sequential>::builder().bind(
        "127.0.0.1:0",
        http.handler_fn(|request: &mut Request<'_>| match request.path() {
            "/stream" => Ok(Response::stream(io::Cursor::new("abcde"))),
            _ => echo_target(request),
        }),
    );
    let running = Running::start(server.unwrap());
    let mut client = HttpClient::to(&running);
    client.get("/a");
    client.ask("HEAD /b HTTP/1.1\r\nHost: a\r\n\r\n");
    client.get("/stream");
    client.ask("invalid\r\n\r\n");
    client.expect_end();
    eventually(TIMEOUT, "the log", || entries.lock().unwrap().len() == 4);
    let entries = entries.lock().unwrap();
    assert_eq!(entries[0], (Some("/a".into()), 200, 6, true));
    assert_eq!(entries[1], (Some("/b".into()), 200, 0, true));
    assert_eq!(entries[2], (Some("/stream".into()), 200, 5, true));
    assert_eq!((&entries[3].0, entries[3].1), (&None, 400));
}

/// Browsers open connections that they may not use.
fn drain_closes_connections_without_a_request<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), echo_target);
    let client = HttpClient::to(&running);
    let handle = running.handle.clone();
    eventually(TIMEOUT, "the connection to be suspended", || {
        handle.waiting_count() == 1
    });
    handle.drain(TIMEOUT);
    client.expect_end();
    let start = Instant::now();
    running.wait_until_stopped().unwrap();
    assert!(start.elapsed() < TIMEOUT / 2);
}

crate::common::under_each_model! {
    one_handler_serves_a_hundred_requests_of_a_connection
    pipelined_requests_are_answered_in_order
    connection_persists_as_requested
    methods_are_dispatched_to_the_handler
    connect_is_rejected
    body_framing_fits_the_version_of_the_client
    handler_cannot_set_framing_headers
    drain_closes_idle_connections_and_announces_the_close_to_others
    drain_closes_connections_without_a_request
}

/// A connection that is silent after the connect does not occupy a worker either.
#[test]
fn silent_connection_does_not_occupy_a_worker() {
    let running = serve(
        socketserver::Pooled::new().workers(1).queue(4),
        Http::new(),
        |_| Ok(Response::text("hello")),
    );
    let silent: Vec<_> = (0..20).map(|_| HttpClient::to(&running)).collect();
    assert_eq!(HttpClient::to(&running).get("/").text(), "hello");
    drop(silent);
}
