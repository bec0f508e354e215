//! Requests and answers, under each model.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use socketserver::http::{Handler, Http, Method, Problem, Request, Response, StatusCode};
use socketserver::transport::{Tcp, UnixStream};
use socketserver::{Concurrency, Result, Sequential, Server};

use crate::client::{Wire, echo, serve, serve_handler};
use crate::common::running::Running;
use crate::common::{PATIENCE, eventually};

/// Answers with what was asked for.
fn asked(request: &mut Request<'_>) -> Result<Response> {
    let text = format!("{} {}", request.method(), request.uri());
    Ok(Response::text(text))
}

/// A hundred requests on one connection, whose handler is made once and sees them all.
fn a_hundred_requests_on_one_connection<C: Concurrency>(model: C) {
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
    let mut wire = Wire::to(&running);
    for n in 1..=100 {
        let answer = wire.get("/");
        assert_eq!((answer.status, answer.text()), (200, n.to_string()));
        assert_eq!(answer.field("connection"), None);
    }
    assert_eq!(made.load(Ordering::SeqCst), 1);
    assert_eq!(running.handle.counters().accepted, 1);
}

fn pipelined_requests_are_answered_in_their_order<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |request| {
        let mut body = String::new();
        request.body().read_to_string(&mut body)?;
        Ok(Response::text(format!("{} {body}", request.path())))
    });
    let mut wire = Wire::to(&running);
    let mut all = String::new();
    for n in 0..50 {
        all += &format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n");
        all += &format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        all += &format!(
            "POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nd\r\n0\r\n\r\n"
        );
    }
    // Cut where nothing ends.
    let (one, two) = all.split_at(all.len() / 2 + 3);
    wire.send(one);
    wire.send(two);
    for n in 0..50 {
        for body in ["", "abc", "d"] {
            assert_eq!(wire.answer(true).text(), format!("/{n} {body}"));
        }
    }
}

/// Who stays and who goes: RFC 9112, 9.3.
fn connections_stay_as_their_clients_want<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), asked);
    for (version, options, stays) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: a, CLOSE ,b\r\n", false),
        ("1.1", "Connection: x\r\nConnection: close\r\n", false),
        ("1.1", "Connection: keep-alive, close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
    ] {
        let mut wire = Wire::to(&running);
        let request = format!("GET / HTTP/{version}\r\nHost: a\r\n{options}\r\n");
        let answer = wire.ask(&request);
        assert_eq!(answer.closes(), !stays, "{request:?}");
        if stays {
            let kept = (version == "1.0").then_some("keep-alive");
            assert_eq!(answer.field("connection"), kept);
            assert_eq!(wire.ask(&request).status, 200);
        } else {
            wire.ends();
        }
    }
}

fn methods_are_dispatched<C: Concurrency>(model: C) {
    struct Kept(Arc<Mutex<String>>);
    impl Handler for Kept {
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
    let kept = Arc::new(Mutex::new(String::new()));
    let running = serve_handler(model, move || Kept(kept.clone()));
    let mut wire = Wire::to(&running);
    let put = wire.ask("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!((put.status, put.field("content-length")), (204, None));
    let get = wire.get("/");
    assert_eq!(get.text(), "abc");
    let head = wire.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let but_date = |head: &str| {
        let lines = head.lines().filter(|line| !line.starts_with("Date"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(but_date(&head.head), but_date(&get.head));
    for method in ["POST", "DELETE", "PATCH", "TRACE"] {
        let answer = wire.ask(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.field("allow"), Some("GET, PUT, HEAD, OPTIONS"));
    }
    let options = wire.ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(
        (options.status, options.field("allow")),
        (204, Some("GET, PUT, HEAD, OPTIONS"))
    );
    assert_eq!(wire.ask("BREW / HTTP/1.1\r\nHost: a\r\n\r\n").status, 501);
    assert_eq!(wire.get("/").text(), "abc");
}

/// By who answers any method with a success, too.
fn nobody_opens_a_tunnel<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), asked);
    let mut wire = Wire::to(&running);
    // What is sent ahead is not taken for a request.
    let ahead = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let tunnel = wire.ask(&format!(
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n{ahead}"
    ));
    assert_eq!((tunnel.status, tunnel.closes()), (501, true));
    wire.ends();
}

/// Each kind of body, to each kind of client.
fn bodies_have_the_ends_that_their_clients_know<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), |request| {
        let long = "0123456789".repeat(10_000);
        Ok(match request.path() {
            "/bytes" => Response::bytes(long),
            "/reader" => Response::reader(io::Cursor::new(long + "and more"), 100_000),
            "/stream" => Response::stream(io::Cursor::new(long)),
            "/none" => Response::stream(io::empty()),
            _ => return Err(Problem::new(StatusCode::NOT_FOUND, "there is no such thing").into()),
        })
    });
    let mut wire = Wire::to(&running);
    for path in ["/bytes", "/reader", "/stream", "/none"] {
        let answer = wire.get(path);
        let length = if path == "/none" { 0 } else { 100_000 };
        assert_eq!((answer.status, answer.body.len()), (200, length), "{path}");
        let is_framed = !matches!(path, "/stream" | "/none");
        assert_eq!(answer.field("content-length").is_some(), is_framed);
        assert_eq!(answer.field("transfer-encoding").is_none(), is_framed);
        let head = wire.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(head.field("content-length"), answer.field("content-length"));

        let mut old = Wire::to(&running);
        let answer = old.ask(&format!(
            "GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        ));
        assert_eq!(answer.body.len(), length, "{path}");
        assert_eq!(answer.field("transfer-encoding"), None);
        assert_eq!(answer.closes(), !is_framed, "{path}");
        if is_framed {
            // It has an end of its own, so the connection needs none.
            let again = old.ask(&format!("GET {path} HTTP/1.0\r\n\r\n"));
            assert_eq!(again.body.len(), length);
        }
        old.ends();
    }
    let missing = wire.get("/missing");
    assert_eq!((missing.status, missing.closes()), (404, false));
    assert_eq!(missing.text(), "404 Not Found: there is no such thing\n");
}

fn what_frames_an_answer_is_not_the_handlers<C: Concurrency>(model: C) {
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
    let mut wire = Wire::to(&running);
    let answer = wire.get("/");
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

fn a_drain_ends_what_is_idle_and_tells_the_others<C: Concurrency>(model: C) {
    let (entered, is_in) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let running = serve(model, Http::new(), move |request| {
        if request.path() == "/slow" {
            entered.send(())?;
            released.lock().unwrap().recv_timeout(PATIENCE)?;
        }
        asked(request)
    });
    let mut idle = Wire::to(&running);
    assert_eq!(idle.get("/").status, 200);
    let mut busy = Wire::to(&running);
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    is_in.recv_timeout(PATIENCE).unwrap();
    let before = Instant::now();
    running.handle.drain(PATIENCE);
    // Under the green model it may have the same thread as the one that is blocked here.
    eventually(PATIENCE, "the drain", || running.handle.is_draining());
    release.send(()).unwrap();
    let answer = busy.answer(true);
    assert_eq!((answer.status, answer.closes()), (200, true));
    busy.ends();
    idle.ends();
    running.ends().unwrap();
    assert!(before.elapsed() < PATIENCE / 2);
}

/// A connection that is silent between two requests holds no worker.
#[test]
fn idle_connections_hold_nobody() {
    let model = socketserver::Pooled::new().workers(1);
    let running = serve(model, Http::new(), asked);
    let mut wires: Vec<_> = (0..20).map(|_| Wire::to(&running)).collect();
    for _ in 0..3 {
        for wire in &mut wires {
            assert_eq!(wire.get("/").status, 200);
        }
    }
}

#[test]
fn a_sequential_server_that_keeps_nobody_serves_all() {
    let running = serve(Sequential, Http::new().keep_alive(false), asked);
    for _ in 0..3 {
        let mut wire = Wire::to(&running);
        assert!(wire.get("/").closes());
        wire.ends();
    }
}

#[test]
fn over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::<UnixStream, Sequential>::builder()
        .bind(dir.path().join("s"), Http::new().handler_fn(echo));
    let running = Running::start(server.unwrap());
    let mut wire = Wire::to(&running);
    let answer = wire.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(answer.text(), "abc");
}

/// What an access log is told.
#[test]
fn exchanges_are_told() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    let http = Http::new().on_response(move |exchange| {
        let path = exchange.request.map(|head| head.path().to_owned());
        let status = exchange.status.as_u16();
        log.lock()
            .unwrap()
            .push((path, status, exchange.sent, exchange.is_complete));
    });
    let server = Server::<Tcp, Sequential>::builder().bind(
        "127.0.0.1:0",
        http.handler_fn(|request: &mut Request<'_>| match request.path() {
            "/stream" => Ok(Response::stream(io::Cursor::new("abcde"))),
            _ => asked(request),
        }),
    );
    let running = Running::start(server.unwrap());
    let mut wire = Wire::to(&running);
    wire.get("/a");
    wire.ask("HEAD /b HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.get("/stream");
    wire.ask("nonsense\r\n\r\n");
    wire.ends();
    eventually(PATIENCE, "the log", || told.lock().unwrap().len() == 4);
    let told = told.lock().unwrap();
    assert_eq!(told[0], (Some("/a".into()), 200, 6, true));
    assert_eq!(told[1], (Some("/b".into()), 200, 0, true));
    assert_eq!(told[2], (Some("/stream".into()), 200, 5, true));
    assert_eq!((&told[3].0, told[3].1), (&None, 400));
}

/// Browsers open connections that they may need.
fn a_drain_does_not_wait_for_who_has_not_asked<C: Concurrency>(model: C) {
    let running = serve(model, Http::new(), asked);
    let wire = Wire::to(&running);
    let handle = running.handle.clone();
    eventually(PATIENCE, "a pause", || handle.waiting_count() == 1);
    handle.drain(PATIENCE);
    wire.ends();
    let began = Instant::now();
    running.ends().unwrap();
    assert!(began.elapsed() < PATIENCE / 2);
}

crate::common::under_each_model! {
    a_hundred_requests_on_one_connection
    pipelined_requests_are_answered_in_their_order
    connections_stay_as_their_clients_want
    methods_are_dispatched
    nobody_opens_a_tunnel
    bodies_have_the_ends_that_their_clients_know
    what_frames_an_answer_is_not_the_handlers
    a_drain_ends_what_is_idle_and_tells_the_others
    a_drain_does_not_wait_for_who_has_not_asked
}

/// Whoever is silent after connecting holds no thread of a pool either.
#[test]
fn silence_before_the_first_request_holds_no_worker() {
    let running = serve(
        socketserver::Pooled::new().workers(1).queue(4),
        Http::new(),
        |_| Ok(Response::text("hello")),
    );
    let silent: Vec<_> = (0..20).map(|_| Wire::to(&running)).collect();
    assert_eq!(Wire::to(&running).get("/").text(), "hello");
    drop(silent);
}
