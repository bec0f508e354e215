//! Connections that each request a file over HTTP, and request it again once it is complete. The
//! status, the length and every byte of each response are checked.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::epoll;

use super::message::send;
use super::{ClosedLoop, Load, Outcome, RunSpec, receive, register};
use crate::environment::set_congestion_control;

/// A file whose contents the server and the load both know.
pub(crate) struct TestFile(usize);

impl TestFile {
    pub(crate) fn of(size: usize) -> Self {
        Self(size)
    }

    pub(crate) fn name(&self) -> String {
        format!("{}.bin", self.0)
    }

    /// Returns the contents. Their period divides no buffer size, so a shift is noticed.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        (0..251_u8).cycle().take(self.0).collect()
    }
}

/// Limit of a response head. The servers here send less.
const MAX_HEAD: usize = 8192;

/// One receive takes nearly everything that a socket buffer holds.
const LARGE_BUFFER: usize = 256 << 10;

pub(super) struct Http {
    epoll: OwnedFd,
    streams: Vec<Stream>,
    request: Vec<u8>,
    expected: Vec<u8>,
    buf: Vec<u8>,
}

struct Stream {
    socket: OwnedFd,
    /// The received part of the head.
    head: Vec<u8>,
    /// Received bytes of the body, once the head is complete.
    received: Option<usize>,
}

impl Http {
    /// Opens connections; each one has had a response when this returns.
    pub(super) fn connect(server: SocketAddr, clients: usize, size: usize) -> anyhow::Result<Self> {
        let file = TestFile::of(size);
        let request = format!("GET /{} HTTP/1.1\r\nHost: {server}\r\n\r\n", file.name());
        let mut own = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            streams: Vec::new(),
            request: request.into(),
            expected: file.bytes(),
            buf: vec![0; LARGE_BUFFER],
        };
        for number in 0..clients {
            let stream = TcpStream::connect(server).context("cannot connect to the server")?;
            stream.set_nodelay(true)?;
            set_congestion_control(&stream);
            stream.set_nonblocking(true)?;
            let socket = OwnedFd::from(stream);
            register(&own.epoll, &socket, number)?;
            own.streams.push(Stream {
                socket,
                head: Vec::new(),
                received: None,
            });
        }
        own.run(RunSpec::of(Duration::ZERO))?;
        Ok(own)
    }
}

impl ClosedLoop for Http {
    fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    fn start_request(&mut self, number: usize) -> anyhow::Result<()> {
        let stream = &mut self.streams[number];
        stream.head.clear();
        stream.received = None;
        send(&stream.socket, &self.request)
    }

    fn on_readable(&mut self, number: usize) -> anyhow::Result<bool> {
        let stream = &mut self.streams[number];
        let Some(bytes) = receive(&stream.socket, &mut self.buf)? else {
            return Ok(false);
        };
        ensure!(!bytes.is_empty(), "the server closed the connection");
        stream.take(bytes, &self.expected)
    }
}

impl Load for Http {
    fn run(&mut self, spec: RunSpec) -> anyhow::Result<Outcome> {
        self.run_clients(0..self.streams.len(), spec.time)
    }
}

impl Stream {
    fn take(&mut self, bytes: &[u8], expected: &[u8]) -> anyhow::Result<bool> {
        let (received, body) = match self.received {
            Some(received) => (received, bytes),
            None => {
                let before = self.head.len();
                self.head.extend(&bytes[..bytes.len().min(MAX_HEAD)]);
                let end = self.head.windows(4).position(|end| end == b"\r\n\r\n");
                let Some(end) = end.map(|end| end + 4) else {
                    ensure!(self.head.len() < MAX_HEAD, "the response head is too long");
                    return Ok(false);
                };
                self.head.truncate(end);
                check(&self.head, expected.len())?;
                (0, &bytes[end - before..])
            }
        };
        let rest = &expected[received..];
        ensure!(body.len() <= rest.len(), "the server sent too many bytes");
        ensure!(
            body == &rest[..body.len()],
            "wrong answer: the body differs from the file"
        );
        let received = received + body.len();
        self.received = Some(received);
        Ok(received == expected.len())
    }
}

/// Checks that a head announces the whole file and keeps the connection open.
fn check(head: &[u8], size: usize) -> anyhow::Result<()> {
    let head = str::from_utf8(head).context("the response head is not UTF-8")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    ensure!(
        status.starts_with("HTTP/1.1 200 "),
        "wrong answer: {status:?}"
    );
    let mut length = None;
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').context("a header field has no name")?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            ensure!(length.is_none(), "the response has two lengths");
            length = Some(
                value
                    .parse::<usize>()
                    .context("the length is not a number")?,
            );
        } else if name.eq_ignore_ascii_case("transfer-encoding")
            || (name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close"))
        {
            bail!("wrong answer: {line:?}");
        }
    }
    ensure!(
        length == Some(size),
        "wrong answer: the length is {length:?} instead of {size}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn stream() -> Stream {
        Stream {
            socket: UnixStream::pair().unwrap().0.into(),
            head: Vec::new(),
            received: None,
        }
    }

    fn answer(fields: &str, size: usize) -> Vec<u8> {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
        [head.into_bytes(), TestFile::of(size).bytes()].concat()
    }

    #[test]
    fn right_answer_is_accepted_in_any_pieces() {
        let expected = TestFile::of(600).bytes();
        let right = answer("Server: x\r\ncontent-length: 600", 600);
        for cut in 1..right.len() {
            let mut stream = stream();
            assert!(!stream.take(&right[..cut], &expected).unwrap(), "{cut}");
            assert!(stream.take(&right[cut..], &expected).unwrap(), "{cut}");
        }
        assert!(stream().take(&right, &expected).unwrap());
    }

    #[test]
    fn wrong_answer_is_an_error() {
        let expected = TestFile::of(600).bytes();
        let right = answer("Content-Length: 600", 600);
        let mut wrong_body = right.clone();
        *wrong_body.last_mut().unwrap() ^= 1;
        let other_status = [b"HTTP/1.1 404", &right[12..]].concat();
        for wrong in [
            wrong_body,
            other_status,
            [&right[..], b"x"].concat(),
            answer("Content-Length: 599", 600),
            answer("Content-Length: 600\r\nContent-Length: 600", 600),
            answer("Content-Length: 600\r\nConnection: close", 600),
            answer("Transfer-Encoding: chunked", 600),
            answer("Server: x", 600),
            vec![b'x'; MAX_HEAD],
        ] {
            assert!(
                stream().take(&wrong, &expected).is_err(),
                "{}",
                wrong[..40].escape_ascii()
            );
        }
    }
}
