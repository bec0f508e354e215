//! A client that sends exact bytes, one at a time if needed, and checks each byte of an answer.

use std::io::{ErrorKind, Read};

use socketserver::http::{Handler, Http, Request, Response};
use socketserver::transport::Tcp;
use socketserver::{Concurrency, Result, Server, Timeouts};

use crate::common::client::Client;
use crate::common::running::Running;

/// One answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// All bytes before the body.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// Returns the first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(": ")?;
            field.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn closes(&self) -> bool {
        self.field("connection") == Some("close")
    }
}

/// A connection that reads answers one by one.
pub struct HttpClient(pub Client);

impl HttpClient {
    pub fn to(running: &Running) -> Self {
        Self(running.client())
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.send(bytes.as_ref()).unwrap();
    }

    /// Sends a request without a body, and reads the answer.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
    }

    #[track_caller]
    pub fn ask(&mut self, request: &str) -> Answer {
        self.send(request);
        self.read_answer(!request.starts_with("HEAD"))
    }

    /// Reads an answer, and no byte after it.
    #[track_caller]
    pub fn read_answer(&mut self, has_body: bool) -> Answer {
        let head = self.head();
        let status = head[9..12].parse().unwrap();
        let mut answer = Answer {
            status,
            head,
            body: Vec::new(),
        };
        if !has_body || status < 200 || status == 204 || status == 304 {
            return answer;
        }
        answer.body = if answer.field("transfer-encoding") == Some("chunked") {
            self.chunks()
        } else if let Some(length) = answer.field("content-length") {
            self.exactly(length.parse().unwrap())
        } else {
            self.read_rest()
        };
        answer
    }

    #[track_caller]
    fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.exactly(1));
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 "), "{head}");
        head
    }

    #[track_caller]
    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.extend(self.exactly(1));
            }
            let size = std::str::from_utf8(&line).unwrap().trim_end();
            let size = usize::from_str_radix(size, 16).unwrap();
            body.extend(self.exactly(size));
            assert_eq!(self.exactly(2), b"\r\n");
            if size == 0 {
                return body;
            }
        }
    }

    #[track_caller]
    pub fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            match self.0.read(&mut bytes[filled..]) {
                Ok(0) => panic!(
                    "end of input after {:?}",
                    String::from_utf8_lossy(&bytes[..filled])
                ),
                Ok(n) => filled += n,
                Err(error) => panic!("{error}, after {filled} of {count} bytes"),
            }
        }
        bytes
    }

    /// Reads until the server closes; panics on a reset.
    #[track_caller]
    pub fn read_rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let mut some = [0; 4096];
        loop {
            match self.0.read(&mut some) {
                Ok(0) => return rest,
                Ok(n) => rest.extend_from_slice(&some[..n]),
                Err(error) => panic!("{error}, after {} bytes", rest.len()),
            }
        }
    }

    /// Expects the server to close the connection without another byte, and not by a reset.
    #[track_caller]
    pub fn expect_end(mut self) {
        assert_eq!(String::from_utf8_lossy(&self.read_rest()), "");
    }

    /// Expects a reset, possibly after some bytes.
    #[track_caller]
    pub fn expect_reset(mut self) {
        let mut some = [0; 4096];
        loop {
            match self.0.read(&mut some) {
                Ok(0) => panic!("the server has closed without a reset"),
                Ok(_) => {}
                Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            }
        }
    }
}

/// Starts a server with this function as its handler.
pub fn serve<C: Concurrency>(
    model: C,
    http: Http,
    respond: impl Fn(&mut Request<'_>) -> Result<Response> + Send + Sync + 'static,
) -> Running {
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .bind("127.0.0.1:0", http.handler_fn(respond));
    Running::start(server.unwrap())
}

/// Starts a server with these timeouts.
pub fn serve_within<C: Concurrency>(
    model: C,
    timeouts: Timeouts,
    http: Http,
    respond: impl Fn(&mut Request<'_>) -> Result<Response> + Send + Sync + 'static,
) -> Running {
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .timeouts(timeouts)
        .bind("127.0.0.1:0", http.handler_fn(respond));
    Running::start(server.unwrap())
}

/// Starts a server with handlers from a factory.
pub fn serve_handler<C: Concurrency, H: Handler>(
    model: C,
    factory: impl Fn() -> H + Clone + Send + Sync + 'static,
) -> Running {
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .bind("127.0.0.1:0", Http::new().handler(factory));
    Running::start(server.unwrap())
}

/// Answers with the body of the request.
pub fn echo(request: &mut Request<'_>) -> Result<Response> {
    let mut body = Vec::new();
    request.body().read_to_end(&mut body)?;
    Ok(Response::bytes(body))
}
