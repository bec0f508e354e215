//! Streams whose reads and writes a test determines.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

use socketserver::framing::{Decoder, Framed};

/// A reader that returns the given parts, one per read, and then the end.
pub struct Script(VecDeque<Result<Vec<u8>, ErrorKind>>);

impl Script {
    pub fn parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self(parts.into_iter().map(|part| Ok(part.to_vec())).collect())
    }

    pub fn part_and_error(part: &[u8], error: ErrorKind) -> Self {
        Self([Ok(part.to_vec()), Err(error)].into())
    }

    /// Returns each byte separately, after an error.
    pub fn with_errors(bytes: &[u8], error: ErrorKind) -> Self {
        Self(
            bytes
                .iter()
                .flat_map(|byte| [Err(error), Ok(vec![*byte])])
                .collect(),
        )
    }
}

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // An empty part would count as the end.
        let Some(part) = self.0.pop_front().filter(|part| *part != Ok(Vec::new())) else {
            return if self.0.is_empty() {
                Ok(0)
            } else {
                self.read(buf)
            };
        };
        let mut part = part?;
        let n = part.len().min(buf.len());
        buf[..n].copy_from_slice(&part[..n]);
        if n < part.len() {
            self.0.push_front(Ok(part.split_off(n)));
        }
        Ok(n)
    }
}

/// A writer that accepts `capacity` bytes, and then times out until its capacity grows.
#[derive(Default)]
pub struct LimitedWriter {
    pub taken: Vec<u8>,
    pub capacity: usize,
    pub writes: usize,
}

impl Write for LimitedWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        let n = buf.len().min(self.capacity);
        if n == 0 {
            return Err(ErrorKind::TimedOut.into());
        }
        self.capacity -= n;
        self.taken.extend_from_slice(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads messages until the end or the first error.
pub fn receive<D: Decoder>(stream: impl Read, codec: D) -> (Vec<Vec<u8>>, Result<(), D::Error>)
where
    D::Item: AsRef<[u8]>,
{
    let mut framed = Framed::new(stream, codec);
    let mut messages = Vec::new();
    let end = loop {
        match framed.read() {
            Ok(Some(message)) => messages.push(message.as_ref().to_vec()),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    (messages, end)
}
