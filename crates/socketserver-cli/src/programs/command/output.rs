//! The output of a command: both streams, in memory while they are short, else in files without a
//! name.

use std::io::{self, Read, Seek, Write};

use tempfile::SpooledTempFile;

/// Maximum bytes of a stream in memory. A longer stream goes into a file.
const IN_MEMORY: usize = 1 << 20;

/// Size of one read from a file.
const PIECE: usize = 256 << 10;

#[derive(Debug, Default)]
pub(super) struct Output {
    /// stdout and stderr.
    streams: [Stream; 2],
}

impl Output {
    /// Appends to stdout (0) or stderr (1).
    pub(super) fn push(&mut self, stream: usize, bytes: &[u8]) -> io::Result<()> {
        let stream = &mut self.streams[stream];
        // A write to memory does not fail, so the error comes from the file.
        stream
            .spool
            .write_all(bytes)
            .map_err(|error| in_directory(&error))?;
        stream.len += bytes.len() as u64;
        stream.last = bytes.last().copied().or(stream.last);
        Ok(())
    }

    /// Returns the number of bytes in both streams together.
    pub(super) fn len(&self) -> u64 {
        self.streams.iter().map(|stream| stream.len).sum()
    }

    /// Returns the body of the reply: stdout, or stderr if stdout is empty.
    pub(super) fn into_body(self) -> io::Result<Body> {
        let [stdout, stderr] = self.streams;
        let Stream {
            mut spool,
            len,
            last,
        } = if stdout.len > 0 { stdout } else { stderr };
        spool.rewind()?;
        Ok(Body {
            len,
            ends_line: last.is_none_or(|last| last == b'\n'),
            in_file: spool.is_rolled(),
            source: Box::new(Source {
                spool,
                piece: Vec::new(),
            }),
        })
    }
}

/// Checks that long output can be stored.
///
/// # Errors
/// Returns an error if the directory for temporary files cannot be used.
pub(super) fn check_directory() -> io::Result<()> {
    tempfile::tempfile()
        .map(drop)
        .map_err(|error| in_directory(&error))
}

fn in_directory(error: &io::Error) -> io::Error {
    let directory = std::env::temp_dir();
    io::Error::new(
        error.kind(),
        format!("a file in {}: {error}", directory.display()),
    )
}

#[derive(Debug)]
struct Stream {
    spool: SpooledTempFile,
    len: u64,
    last: Option<u8>,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            spool: SpooledTempFile::new(IN_MEMORY),
            len: 0,
            last: None,
        }
    }
}

pub(super) struct Body {
    pub(super) len: u64,
    /// True if the body is empty or ends with a line end, so that a line can follow it.
    pub(super) ends_line: bool,
    in_file: bool,
    source: Box<Source>,
}

struct Source {
    spool: SpooledTempFile,
    piece: Vec<u8>,
}

impl Body {
    pub(super) fn empty() -> Self {
        let spool = SpooledTempFile::new(IN_MEMORY);
        Self {
            len: 0,
            ends_line: true,
            in_file: false,
            source: Box::new(Source {
                spool,
                piece: Vec::new(),
            }),
        }
    }

    /// Writes the whole body. A read from a file may block, so it runs in a blocking thread and
    /// does not delay other clients.
    pub(super) fn write_to(self, to: &mut impl Write) -> io::Result<()> {
        let mut source = self.source;
        let mut left = self.len;
        while left > 0 {
            let read;
            (source, read) = if self.in_file {
                socketserver::greenroom::unblock(move || source.next())
            } else {
                source.next()
            };
            read?;
            to.write_all(&source.piece)?;
            left = left.saturating_sub(source.piece.len() as u64);
        }
        Ok(())
    }
}

impl Source {
    fn next(mut self: Box<Self>) -> (Box<Self>, io::Result<()>) {
        self.piece.resize(PIECE, 0);
        let read = loop {
            match self.spool.read(&mut self.piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) => break Err(io::ErrorKind::UnexpectedEof.into()),
                read => break read,
            }
        };
        let read = read.map(|n| self.piece.truncate(n));
        (self, read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(stdout: &[u8], stderr: &[u8]) -> Body {
        let mut output = Output::default();
        output.push(0, stdout).unwrap();
        output.push(1, stderr).unwrap();
        assert_eq!(output.len(), (stdout.len() + stderr.len()) as u64);
        output.into_body().unwrap()
    }

    fn bytes(body: Body) -> Vec<u8> {
        let mut all = Vec::new();
        body.write_to(&mut all).unwrap();
        all
    }

    #[test]
    fn stderr_is_shown_when_stdout_is_empty() {
        assert_eq!(bytes(body(b"out", b"err")), b"out");
        assert_eq!(bytes(body(b"", b"err")), b"err");
        assert_eq!(bytes(body(b"", b"")), b"");
        assert!(body(b"", b"").ends_line && body(b"x\n", b"y").ends_line);
        assert!(!body(b"x", b"y\n").ends_line);
    }

    #[test]
    fn what_is_too_long_for_memory_comes_back_the_same() {
        let long: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let body = body(&long, b"");
        assert!(body.in_file);
        assert!(bytes(body) == long);
    }
}
