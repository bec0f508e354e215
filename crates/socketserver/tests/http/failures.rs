//! Handlers and readers that fail, before the answer has begun and after.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use socketserver::http::{Http, Problem, Request, Response, StatusCode};
use socketserver::transport::Tcp;
use socketserver::{Concurrency, Result, Server};

use crate::client::HttpClient;
use crate::common::running::Running;
use crate::common::{TIMEOUT, eventually};

/// Returns some bytes, and then an error or a panic.
struct Failing {
    left: usize,
    panics: bool,
}

impl Read for Failing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            assert!(!self.panics, "the reader panics");
            return Err(io::Error::other("the reader fails"));
        }
        let n = self.left.min(buf.len());
        buf[..n].fill(b'x');
        self.left -= n;
        Ok(n)
    }
}

fn respond(request: &mut Request<'_>) -> Result<Response> {
    let panics = request.query() == Some("panics");
    let failing = |left| Failing { left, panics };
    Ok(match request.path() {
        "/handler" if panics => panic!("the handler panics"),
        "/handler" => return Err("the handler fails".into()),
        "/sized/0" => Response::reader(failing(0), 10),
        "/sized/5" => Response::reader(failing(5), 10),
        "/short" => Response::reader(&b"abc"[..], 10),
        "/stream" => Response::stream(failing(5)),
        "/informational" => Response::text("early").status(StatusCode::EARLY_HINTS),
        "/problem" => return Err(Problem::new(StatusCode::CONTINUE, "go on").into()),
        "/switching" => Response::new(StatusCode::SWITCHING_PROTOCOLS),
        _ => Response::text("fine"),
    })
}

/// The error of a handler that answers with such a status. Its client would wait for a final
/// status.
macro_rules! not_final {
    ($status:literal) => {
        concat!(
            "handle: the handler has answered with status ",
            $status,
            ", which is not final (RFC 9110, 15.2): answer with a final status, or with \
             Response::upgrade"
        )
    };
}

fn serve<C: Concurrency>(model: C) -> (Running, Arc<Mutex<Vec<String>>>) {
    let errors = Arc::new(Mutex::new(Vec::new()));
    let failures = errors.clone();
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .handle_error(move |_, failure| {
            failures.lock().unwrap().push(failure.to_string());
            Ok(())
        })
        .bind("127.0.0.1:0", Http::new().handler_fn(respond));
    (Running::start(server.unwrap()), errors)
}

fn failure_before_the_answer_is_a_500<C: Concurrency>(model: C) {
    let (running, errors) = serve(model);
    for (path, failure) in [
        ("/handler", "handle: the handler fails"),
        ("/handler?panics", "handle: panicked: the handler panics"),
        ("/sized/0", "handle: the reader fails"),
        ("/sized/0?panics", "handle: panicked: the reader panics"),
        ("/informational", not_final!(103)),
        ("/problem", not_final!(100)),
        ("/switching", not_final!(101)),
    ] {
        let mut client = HttpClient::to(&running);
        assert_eq!(client.get("/").text(), "fine");
        let answer = client.get(path);
        assert_eq!((answer.status, answer.closes()), (500, true), "{path}");
        // The answer does not reveal the failure.
        assert!(!answer.text().contains("fails") && !answer.text().contains("panics"));
        client.expect_end();
        eventually(TIMEOUT, path, || errors.lock().unwrap().len() == 1);
        assert_eq!(
            errors.lock().unwrap().pop().as_deref(),
            Some(failure),
            "{path}"
        );
    }
}

/// The client has a part of the answer, and must not take it for the whole.
fn failure_within_the_answer_ends_the_connection<C: Concurrency>(model: C) {
    let (running, errors) = serve(model);
    for (path, failure) in [
        ("/sized/5", "handle: the reader fails"),
        ("/sized/5?panics", "handle: panicked: the reader panics"),
        (
            "/short",
            "handle: the reader of a response ended 7 bytes before its length",
        ),
        ("/stream", "handle: the reader fails"),
        ("/stream?panics", "handle: panicked: the reader panics"),
    ] {
        let mut client = HttpClient::to(&running);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let text = String::from_utf8(client.read_rest()).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        if path.starts_with("/stream") {
            assert!(text.ends_with("\r\n5\r\nxxxxx\r\n"), "{text}");
        } else {
            assert!(text.contains("Content-Length: 10\r\n"), "{text}");
        }
        // If the end of the connection is the end of the answer, the server sends a reset instead.
        if path.starts_with("/stream") {
            let mut client = HttpClient::to(&running);
            client.send(format!("GET {path} HTTP/1.0\r\n\r\n"));
            client.expect_reset();
            eventually(TIMEOUT, path, || errors.lock().unwrap().len() == 2);
            errors.lock().unwrap().pop();
        }
        eventually(TIMEOUT, path, || errors.lock().unwrap().len() == 1);
        assert_eq!(
            errors.lock().unwrap().pop().as_deref(),
            Some(failure),
            "{path}"
        );
    }
}

/// A panic of the error page or of the log does not end a request.
#[test]
fn panicking_hooks_do_not_end_the_request() {
    let http = Http::new()
        .error_page(|problem| match problem.status() {
            StatusCode::NOT_FOUND => panic!("the page"),
            status => Response::html("<p>wrong")
                .status(StatusCode::OK)
                .header("x-was", status.as_str())
                .unwrap(),
        })
        .on_response(|_| panic!("the log"));
    let running = crate::client::serve(socketserver::Threading::new(), http, |request| {
        let status = StatusCode::from_bytes(&request.path().as_bytes()[1..])?;
        Err(Problem::new(status, "a < b").into())
    });
    let mut client = HttpClient::to(&running);
    let answer = client.get("/404");
    assert_eq!(
        (answer.status, answer.text()),
        (404, "404 Not Found: a < b\n".into())
    );
    let answer = client.get("/403");
    assert_eq!((answer.status, answer.text()), (403, "<p>wrong".into()));
    assert_eq!(answer.field("x-was"), Some("403"));
}

crate::common::under_each_model! {
    failure_before_the_answer_is_a_500
    failure_within_the_answer_ends_the_connection
}
