//! Connections that each ask for a file over HTTP, and ask again when they have it. Each answer's
//! status and length are looked at, and every byte of its body.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::epoll;

use super::message::send;
use super::{ClosedLoop, Load, Order, Outcome, receive, watch};
use crate::machine::set_congestion_control;

/// What is asked for: a file that the server has and the load knows.
pub(crate) struct Page(usize);

impl Page {
    pub(crate) fn of(size: usize) -> Self {
        Self(size)
    }

    pub(crate) fn name(&self) -> String {
        format!("{}.bin", self.0)
    }

    /// With a period that no buffer's size is a multiple of.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        (0..251_u8).cycle().take(self.0).collect()
    }
}

/// No server here has as long a head.
const LONGEST_HEAD: usize = 8192;

/// In one call comes as much as a socket holds, mostly.
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
    /// As much of the head as has come.
    head: Vec<u8>,
    /// So much of the body has come, once the head is there as a whole.
    received: Option<usize>,
}

impl Http {
    /// Each of the connections has had an answer already.
    pub(super) fn connect(server: SocketAddr, clients: usize, size: usize) -> anyhow::Result<Self> {
        let page = Page::of(size);
        let request = format!("GET /{} HTTP/1.1\r\nHost: {server}\r\n\r\n", page.name());
        let mut own = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            streams: Vec::new(),
            request: request.into(),
            expected: page.bytes(),
            buf: vec![0; LARGE_BUFFER],
        };
        for number in 0..clients {
            let stream = TcpStream::connect(server).context("cannot connect")?;
            stream.set_nodelay(true)?;
            set_congestion_control(&stream);
            stream.set_nonblocking(true)?;
            let socket = OwnedFd::from(stream);
            watch(&own.epoll, &socket, number)?;
            own.streams.push(Stream {
                socket,
                head: Vec::new(),
                received: None,
            });
        }
        own.run(Order::of(Duration::ZERO))?;
        Ok(own)
    }
}

impl ClosedLoop for Http {
    fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    fn begin(&mut self, number: usize) -> anyhow::Result<()> {
        let stream = &mut self.streams[number];
        stream.head.clear();
        stream.received = None;
        send(&stream.socket, &self.request)
    }

    fn hear(&mut self, number: usize) -> anyhow::Result<bool> {
        let stream = &mut self.streams[number];
        let Some(bytes) = receive(&stream.socket, &mut self.buf)? else {
            return Ok(false);
        };
        ensure!(!bytes.is_empty(), "the server closed");
        stream.take(bytes, &self.expected)
    }
}

impl Load for Http {
    fn run(&mut self, order: Order) -> anyhow::Result<Outcome> {
        self.go_round(0..self.streams.len(), order.time)
    }
}

impl Stream {
    fn take(&mut self, bytes: &[u8], expected: &[u8]) -> anyhow::Result<bool> {
        let (received, body) = match self.received {
            Some(received) => (received, bytes),
            None => {
                let before = self.head.len();
                self.head.extend(&bytes[..bytes.len().min(LONGEST_HEAD)]);
                let end = self.head.windows(4).position(|end| end == b"\r\n\r\n");
                let Some(end) = end.map(|end| end + 4) else {
                    ensure!(self.head.len() < LONGEST_HEAD, "the head has no end");
                    return Ok(false);
                };
                self.head.truncate(end);
                check(&self.head, expected.len())?;
                (0, &bytes[end - before..])
            }
        };
        let rest = &expected[received..];
        ensure!(body.len() <= rest.len(), "the server sent too much");
        ensure!(
            body == &rest[..body.len()],
            "a wrong answer: not what is in the file came"
        );
        let received = received + body.len();
        self.received = Some(received);
        Ok(received == expected.len())
    }
}

/// Whether a head says that all of the file follows, and that the connection stays.
fn check(head: &[u8], size: usize) -> anyhow::Result<()> {
    let head = str::from_utf8(head).context("the head is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    ensure!(
        status.starts_with("HTTP/1.1 200 "),
        "a wrong answer: {status:?}"
    );
    let mut length = None;
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').context("a field without a name")?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            ensure!(length.is_none(), "two lengths");
            length = Some(value.parse::<usize>().context("a length that is none")?);
        } else if name.eq_ignore_ascii_case("transfer-encoding")
            || (name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close"))
        {
            bail!("a wrong answer: {line:?}");
        }
    }
    ensure!(
        length == Some(size),
        "a wrong answer: the length is {length:?} and not {size}"
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
        [head.into_bytes(), Page::of(size).bytes()].concat()
    }

    #[test]
    fn a_right_answer_is_right_in_any_pieces() {
        let expected = Page::of(600).bytes();
        let right = answer("Server: x\r\ncontent-length: 600", 600);
        for cut in 1..right.len() {
            let mut stream = stream();
            assert!(!stream.take(&right[..cut], &expected).unwrap(), "{cut}");
            assert!(stream.take(&right[cut..], &expected).unwrap(), "{cut}");
        }
        assert!(stream().take(&right, &expected).unwrap());
    }

    #[test]
    fn a_wrong_answer_is_an_error() {
        let expected = Page::of(600).bytes();
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
            vec![b'x'; LONGEST_HEAD],
        ] {
            assert!(
                stream().take(&wrong, &expected).is_err(),
                "{}",
                wrong[..40].escape_ascii()
            );
        }
    }
}
