//! A stream that does what a test says.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

use socketserver::framing::{Decoder, Framed};

/// Reads give its pieces, one by one and none across two; then the end.
pub struct Script(VecDeque<Result<Vec<u8>, ErrorKind>>);

impl Script {
    pub fn pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self(pieces.into_iter().map(|piece| Ok(piece.to_vec())).collect())
    }

    pub fn piece_and_error(piece: &[u8], error: ErrorKind) -> Self {
        Self([Ok(piece.to_vec()), Err(error)].into())
    }

    /// Every byte alone, and before each an error.
    pub fn faltering(bytes: &[u8], error: ErrorKind) -> Self {
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
        // An empty piece would be taken for the end.
        let Some(piece) = self.0.pop_front().filter(|piece| *piece != Ok(Vec::new())) else {
            return if self.0.is_empty() {
                Ok(0)
            } else {
                self.read(buf)
            };
        };
        let mut piece = piece?;
        let n = piece.len().min(buf.len());
        buf[..n].copy_from_slice(&piece[..n]);
        if n < piece.len() {
            self.0.push_front(Ok(piece.split_off(n)));
        }
        Ok(n)
    }
}

/// Takes `room` bytes, and then times out until it has more.
#[derive(Default)]
pub struct Narrow {
    pub taken: Vec<u8>,
    pub room: usize,
    pub writes: usize,
}

impl Write for Narrow {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        let n = buf.len().min(self.room);
        if n == 0 {
            return Err(ErrorKind::TimedOut.into());
        }
        self.room -= n;
        self.taken.extend_from_slice(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The messages until the end, or until the first error.
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
