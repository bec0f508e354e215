//! Sends a response: its framing fields, and its body.

use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::SystemTime;

use ::http::header::{CONNECTION, CONTENT_LENGTH, DATE, SERVER, TRANSFER_ENCODING, UPGRADE};
use ::http::{HeaderName, HeaderValue, Method, Version};

use super::response::{ResponseBody, Segment};
use super::{RequestHead, Response};
use crate::{Connection, Result};

/// The buffer size: a small response is one write, and a reader is read in pieces of this size.
const COALESCE_LIMIT: usize = 16 << 10;

/// Fields that only the server sets.
const RESERVED_HEADERS: [HeaderName; 4] = [CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING];

/// The facts about the request and the connection that a response depends on.
pub(super) struct ResponseContext<'a> {
    pub version: Version,
    /// False for `HEAD`: no byte follows the fields.
    pub wants_body: bool,
    pub stays: bool,
    pub server: Option<&'a HeaderValue>,
}

impl<'a> ResponseContext<'a> {
    /// If the request was malformed (`None`), its wishes are unknown.
    pub fn new(head: Option<&RequestHead>, stays: bool, server: Option<&'a HeaderValue>) -> Self {
        Self {
            version: head.map_or(Version::HTTP_10, RequestHead::version),
            wants_body: head.is_none_or(|head| head.method() != Method::HEAD),
            stays,
            server,
        }
    }

    /// Returns true if only the end of the connection ends the response.
    pub fn ends_with_connection(&self, response: &Response) -> bool {
        self.version == Version::HTTP_10 && response.may_have_body() && response.len().is_none()
    }
}

/// The progress of a response.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// A part of the response may have been sent.
    pub has_begun: bool,
    /// The number of body bytes that were sent.
    pub body: u64,
}

/// A response that is being sent.
struct ResponseWriter<'a> {
    conn: &'a mut Connection,
    progress: &'a mut Progress,
    /// Buffered bytes: the head, and the beginning of the body.
    gathered: Vec<u8>,
    /// The number of body bytes in the buffer.
    gathered_body: u64,
}

pub(super) fn send(
    conn: &mut Connection,
    to: &ResponseContext<'_>,
    response: Response,
    progress: &mut Progress,
) -> Result<()> {
    let mut gathered = Vec::with_capacity(1024);
    write_head(&mut gathered, to, &response)?;
    let mut sending = ResponseWriter {
        conn,
        progress,
        gathered,
        gathered_body: 0,
    };
    let is_chunked = to.version != Version::HTTP_10;
    if to.wants_body && response.may_have_body() {
        match response.content {
            ResponseBody::Pieces(pieces) => sending.pieces(pieces)?,
            ResponseBody::Sized(reader, length) => sending.sized(reader, length)?,
            ResponseBody::Stream(reader) if is_chunked => sending.chunked(reader)?,
            ResponseBody::Stream(reader) => sending.unframed(reader)?,
        }
    }
    Ok(sending.flush()?)
}

fn write_head(out: &mut Vec<u8>, to: &ResponseContext<'_>, response: &Response) -> io::Result<()> {
    let status = response.status;
    let reason = status.canonical_reason().unwrap_or("");
    write!(out, "HTTP/1.1 {} {reason}\r\n", status.as_str())?;
    let date = httpdate::HttpDate::from(SystemTime::now());
    write!(out, "Date: {date}\r\n")?;
    if let Some(server) = to.server.filter(|_| !response.headers.contains_key(SERVER)) {
        field(out, "Server", server.as_bytes());
    }
    match (response.may_have_body(), response.len()) {
        (false, _) => {}
        (true, Some(length)) => write!(out, "Content-Length: {length}\r\n")?,
        (true, None) if to.version == Version::HTTP_10 => {}
        (true, None) => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    // Upgrade is a hop-by-hop field, so `Connection` must name it (RFC 9110, 7.8).
    if response.headers.contains_key(UPGRADE) {
        let options: &[u8] = if to.stays {
            b"Upgrade"
        } else {
            b"Upgrade, close"
        };
        field(out, "Connection", options);
    } else if !to.stays {
        field(out, "Connection", b"close");
    } else if to.version == Version::HTTP_10 {
        field(out, "Connection", b"keep-alive");
    }
    for (name, value) in &response.headers {
        if !RESERVED_HEADERS.contains(name) {
            field(out, name.as_str(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

impl ResponseWriter<'_> {
    fn pieces(&mut self, pieces: Vec<Segment>) -> io::Result<()> {
        for piece in pieces {
            let room = COALESCE_LIMIT.saturating_sub(self.gathered.len());
            match piece {
                Segment::Memory(bytes) if bytes.len() > room => self.flush_with(&[&bytes])?,
                Segment::Memory(bytes) => {
                    self.gathered.extend_from_slice(&bytes);
                    self.gathered_body += bytes.len() as u64;
                }
                Segment::File(file, range) => self.file(&file, range, room as u64)?,
            }
        }
        Ok(())
    }

    /// Sends a file. Its beginning joins the buffered bytes, so that a small file needs one write,
    /// and no small segment precedes a large one.
    fn file(&mut self, file: impl AsFd, range: Range<u64>, room: u64) -> io::Result<()> {
        let Range { start, end } = range;
        let with_head = start + room.min(end - start);
        let begin = self.gathered.len();
        let count = usize::try_from(with_head - start).unwrap_or(0);
        self.gathered.resize(begin + count, 0);
        let mut filled = begin;
        while filled < self.gathered.len() {
            let at = start + (filled - begin) as u64;
            match rustix::io::pread(&file, &mut self.gathered[filled..], at) {
                Ok(0) => return Err(shortened()),
                Ok(n) => filled += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.gathered_body += count as u64;
        if with_head == end {
            return Ok(());
        }
        self.flush()?;
        let mut rest = with_head..end;
        let sent = self.conn.send_of_file(file.as_fd(), &mut rest);
        self.progress.body += rest.start - with_head;
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => shortened(),
            _ => error,
        })
    }

    fn sized(&mut self, mut reader: impl Read, length: u64) -> io::Result<()> {
        let mut left = length;
        let mut buffer = vec![0; COALESCE_LIMIT.min(usize::try_from(length).unwrap_or(usize::MAX))];
        while left > 0 {
            let most = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let n = read(&mut reader, &mut buffer[..most])?;
            if n == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("the reader of a response ended {left} bytes before its length"),
                ));
            }
            left -= n as u64;
            self.flush_with(&[&buffer[..n]])?;
        }
        Ok(())
    }

    /// Sends chunks. The head is sent first, because the first bytes may arrive late.
    fn chunked(&mut self, mut reader: impl Read) -> io::Result<()> {
        self.flush()?;
        let mut buffer = vec![0; COALESCE_LIMIT];
        loop {
            let n = read(&mut reader, &mut buffer)?;
            if n == 0 {
                self.gathered.extend_from_slice(b"0\r\n\r\n");
                return Ok(());
            }
            write!(self.gathered, "{n:x}\r\n")?;
            self.flush_with(&[&buffer[..n], b"\r\n"])?;
            // The line end of the chunk is not part of the body.
            self.progress.body -= 2;
        }
    }

    fn unframed(&mut self, mut reader: impl Read) -> io::Result<()> {
        self.flush()?;
        let mut buffer = vec![0; COALESCE_LIMIT];
        loop {
            match read(&mut reader, &mut buffer)? {
                0 => return Ok(()),
                n => self.flush_with(&[&buffer[..n]])?,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_with(&[])
    }

    /// Sends the buffered bytes and parts of the body.
    fn flush_with(&mut self, body: &[&[u8]]) -> io::Result<()> {
        let mut slices = Vec::with_capacity(1 + body.len());
        slices.push(IoSlice::new(&self.gathered));
        slices.extend(body.iter().map(|part| IoSlice::new(part)));
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            self.progress.has_begun = true;
            match self.conn.write_vectored(rest)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => IoSlice::advance_slices(&mut rest, n),
            }
        }
        let length: usize = body.iter().map(|part| part.len()).sum();
        self.progress.body += std::mem::take(&mut self.gathered_body) + length as u64;
        self.gathered.clear();
        Ok(())
    }
}

fn read(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn shortened() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the file of a response was shortened while it was sent",
    )
}
