//! Chunked bodies: [RFC 9112, 7.1](https://www.rfc-editor.org/rfc/rfc9112#section-7.1).

use std::fmt;
use std::io::{self, BufRead, Read};

use ::http::{HeaderMap, StatusCode};

use super::HttpLimits;
use super::chunk_extension::are_extensions;
use super::head::fields;
use super::problem::{bad, problem};

/// The state of a decoder in a chunked body. The decoder holds no stream, so that it can continue
/// after a failed read.
#[derive(Debug)]
pub(super) struct Chunks {
    state: State,
    /// The received part of a line: a chunk size with its extensions, or the end of a chunk.
    line: Vec<u8>,
    /// All lines of the trailer section.
    trailer: Vec<u8>,
    fields: usize,
    /// The number of bytes that extensions may still take.
    extensions: usize,
    limits: HttpLimits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailer,
    Done,
}

/// A `u64` has at most 16 hexadecimal digits.
const DIGITS: usize = 16;

impl Chunks {
    pub fn new(limits: &HttpLimits) -> Self {
        Self {
            state: State::Size,
            line: Vec::new(),
            trailer: Vec::new(),
            fields: 0,
            extensions: limits.chunk_extensions,
            limits: limits.clone(),
        }
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Returns the trailer fields of the body.
    pub fn trailers(&self) -> io::Result<HeaderMap> {
        Ok(fields(&self.trailer)?)
    }

    /// Reads some data, of which at most `allowed` bytes may follow. Returns 0 at the end.
    pub fn read(
        &mut self,
        from: &mut impl BufRead,
        into: &mut [u8],
        allowed: u64,
    ) -> io::Result<usize> {
        let too_long = || {
            problem(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is longer than is taken here",
            )
        };
        loop {
            match self.state {
                // The limit is lower than when the chunk began.
                State::Data(left) if left > allowed => return Err(too_long().into()),
                State::Data(left) => {
                    let most = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
                    let n = from.read(&mut into[..most])?;
                    if n == 0 && most > 0 {
                        return Err(ended().into());
                    }
                    self.state = match left - n as u64 {
                        0 => State::DataEnd,
                        left => State::Data(left),
                    };
                    return Ok(n);
                }
                State::Done => return Ok(0),
                State::Size => {
                    self.line(from, DIGITS.saturating_add(self.extensions))?;
                    let size = self.size()?;
                    if size > allowed {
                        return Err(too_long().into());
                    }
                    self.state = match size {
                        0 => State::Trailer,
                        size => State::Data(size),
                    };
                }
                State::DataEnd => {
                    self.line(from, 0)?;
                    if !self.line.is_empty() {
                        return Err(bad("a chunk is longer than it says").into());
                    }
                    self.state = State::Size;
                }
                State::Trailer => self.trailer(from)?,
            }
            self.line.clear();
        }
    }

    /// Reads to the end of a line, without the line end. A partial line stays in `self.line`.
    fn line(&mut self, from: &mut impl BufRead, limit: usize) -> io::Result<()> {
        // A limit near `usize::MAX` must not overflow below.
        let limit = limit.min(usize::MAX - 3);
        loop {
            let some = from.fill_buf()?;
            if some.is_empty() {
                return Err(ended().into());
            }
            // One byte beyond the limit is enough to detect an excess.
            let room = (limit + 3).saturating_sub(self.line.len());
            let end = memchr::memchr(b'\n', &some[..some.len().min(room)]);
            let taken = end.map_or(some.len().min(room), |end| end + 1);
            self.line.extend_from_slice(&some[..taken]);
            from.consume(taken);
            if end.is_some() {
                self.line.pop();
                let ends = self.line.pop() == Some(b'\r');
                if !ends || self.line.contains(&b'\r') {
                    return Err(bad("a line of the chunked body does not end in CRLF").into());
                }
            }
            if self.line.len() > limit + 2 || (end.is_some() && self.line.len() > limit) {
                return Err(bad("a line of the chunked body is too long").into());
            }
            if end.is_some() {
                return Ok(());
            }
        }
    }

    fn size(&mut self) -> io::Result<u64> {
        let is_digit = |byte: &u8| byte.is_ascii_hexdigit();
        let count = self.line.iter().take_while(|byte| is_digit(byte)).count();
        let (digits, extension) = self.line.split_at(count);
        // The grammar is 1*HEXDIG. Number parsers also accept a sign or 0x.
        let size = std::str::from_utf8(digits)
            .ok()
            .filter(|_| count <= DIGITS)
            .and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let Some(size) = size else {
            return Err(bad("the size of a chunk is no hexadecimal number").into());
        };
        if !are_extensions(extension) {
            return Err(bad("there is something behind the size of a chunk").into());
        }
        match self.extensions.checked_sub(extension.len()) {
            Some(left) => self.extensions = left,
            None => return Err(bad("the extensions of the chunks are too long").into()),
        }
        Ok(size)
    }

    /// Reads one line of the trailer section.
    fn trailer(&mut self, from: &mut impl BufRead) -> io::Result<()> {
        let too_large = || {
            problem(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the trailer fields are too long, or too many",
            )
        };
        let left = self.limits.header.saturating_sub(self.trailer.len());
        if let Err(error) = self.line(from, left) {
            return Err(if self.line.len() > left {
                too_large().into()
            } else {
                error
            });
        }
        self.trailer.extend_from_slice(&self.line);
        self.trailer.extend_from_slice(b"\r\n");
        if self.line.is_empty() {
            fields(&self.trailer)?;
            self.state = State::Done;
        } else {
            self.fields += 1;
            if self.fields > self.limits.max_headers {
                return Err(too_large().into());
            }
        }
        Ok(())
    }
}

fn ended() -> super::Problem {
    bad("the body ended before it was complete")
}

/// Reads a chunked body from any buffered stream, and nothing behind it.
///
/// ```
/// use socketserver::http::{ChunkedReader, HttpLimits};
/// use std::io::Read;
///
/// let wire = b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nDigest: x\r\n\r\nnext";
/// let mut rest = &wire[..];
/// let mut body = ChunkedReader::new(&mut rest, &HttpLimits::default());
/// let mut text = String::new();
/// body.read_to_string(&mut text)?;
/// assert_eq!(text, "abcdefg");
/// assert_eq!(body.trailers().unwrap()["digest"], "x");
/// assert_eq!(rest, b"next");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Returns an error with a [`Problem`](super::Problem) if the body is malformed or exceeds a limit.
/// The limits `body`, `header`, `max_headers` and `chunk_extensions` apply.
pub struct ChunkedReader<R> {
    from: R,
    chunks: Chunks,
    left: u64,
}

impl<R: BufRead> ChunkedReader<R> {
    /// Returns a reader of a body that begins with the next byte.
    pub fn new(from: R, limits: &HttpLimits) -> Self {
        Self {
            from,
            chunks: Chunks::new(limits),
            left: limits.body,
        }
    }

    /// Returns the trailer fields, once the body has been read to its end.
    pub fn trailers(&self) -> Option<HeaderMap> {
        self.chunks.is_done().then(|| self.chunks.trailers().ok())?
    }
}

impl<R: BufRead> Read for ChunkedReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = self.chunks.read(&mut self.from, buf, self.left)?;
        self.left -= n as u64;
        Ok(n)
    }
}

impl<R> fmt::Debug for ChunkedReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkedReader")
            .field("chunks", &self.chunks)
            .finish_non_exhaustive()
    }
}
