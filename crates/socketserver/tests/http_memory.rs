//! Whoever sends without end gets nothing for it: no limit is exceeded by more than a buffer, and
//! what a peer only announces costs nothing. Alone in its program: it counts all that is allocated.

#![allow(clippy::unwrap_used, reason = "a test says why it fails")]

use std::alloc::System;
use std::io::{self, BufReader, Read};

use socketserver::http::{ChunkedReader, HttpLimits, Problem, RequestHead, StatusCode};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A beginning, and then the same for ever.
struct Endless<'a> {
    begin: &'a [u8],
    again: &'a [u8],
    at: usize,
    given: usize,
}

impl<'a> Endless<'a> {
    fn new(begin: &'a str, again: &'a str) -> Self {
        Self {
            begin: begin.as_bytes(),
            again: again.as_bytes(),
            at: 0,
            given: 0,
        }
    }
}

impl Read for Endless<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = if self.begin.is_empty() {
            let rest = &self.again[self.at..];
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            self.at = (self.at + n) % self.again.len();
            n
        } else {
            self.begin.read(buf)?
        };
        self.given += n;
        Ok(n)
    }
}

/// What was allocated by `call`, all in all: more than there ever was at once.
fn allocated<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let counted = Region::new(COUNTED);
    let result = call();
    let change = counted.change();
    let grown = usize::try_from(change.bytes_reallocated.max(0)).unwrap();
    (result, change.bytes_allocated + grown)
}

fn status(error: &io::Error) -> StatusCode {
    Problem::of(error)
        .unwrap_or_else(|| panic!("{error}"))
        .status()
}

// One test, as another one's memory would be counted, too.
#[test]
fn nothing_grows_above_its_limit() {
    heads_end_at_their_limits();
    chunked_bodies_end_at_their_limits();
}

fn heads_end_at_their_limits() {
    let limits = HttpLimits::default();
    let most = limits.request_line + limits.header;
    let long = "x".repeat(1000);
    let field = format!("A: {long}\r\n");
    let start = "GET / HTTP/1.1\r\nHost: a\r\n";
    for (begin, again, expected) in [
        ("GET /", "x", 414),
        ("GET /?", &*long, 414),
        ("", "x", 414),
        (start, "A: b\r\n", 431),
        (start, &*field, 431),
        (start, "x", 431),
        ("GET / HTTP/1.1\r\nA: ", " ", 431),
        ("GET / HTTP/1.1\r\nA: ", ",", 431),
        ("", "\r\n", 400),
    ] {
        let mut source = Endless::new(begin, again);
        let (error, bytes) = allocated(|| {
            let mut from = BufReader::with_capacity(4096, &mut source);
            RequestHead::read(&mut from, &limits).unwrap_err()
        });
        let case = format!("{begin:?} {:?}", &again[..again.len().min(10)]);
        assert_eq!(status(&error).as_u16(), expected, "{case}");
        assert!(source.given <= most + 4096, "{case}: {} read", source.given);
        // A growing vector has been half as large before, and that has been a quarter.
        assert!(bytes <= 4 * most + 4096, "{case}: {bytes} bytes");
    }
    // One that is within its limits has no more than a small multiple of them, either.
    let shortest = format!("{start}{}\r\n", "a:\r\n".repeat(limits.max_headers - 1));
    let (head, bytes) = allocated(|| RequestHead::parse(shortest.as_bytes(), &limits));
    assert!(head.unwrap().is_some());
    assert!(bytes <= 4 * most, "{bytes} bytes");
}

fn chunked_bodies_end_at_their_limits() {
    let limits = HttpLimits::default().body(100_000);
    let long = format!("A: {}\r\n", "x".repeat(1000));
    for (begin, again, expected) in [
        // What is said is not believed.
        ("FFFFFFFFFFFFFFFF\r\n", "x", 413),
        ("186A1\r\n", "x", 413),
        // More digits than any size has, and the same with zeros.
        ("", "F", 400),
        ("", "0", 400),
        ("1;", "x", 400),
        ("", "1;a=b\r\nx\r\n", 400),
        ("", "1\r\nx\r\n", 413),
        ("", "400\r\n", 400),
        ("0\r\n", "A: b\r\n", 431),
        ("0\r\n", &*long, 431),
        ("0\r\n", "x", 431),
    ] {
        let mut source = Endless::new(begin, again);
        let (error, bytes) = allocated(|| {
            let mut from = BufReader::with_capacity(4096, &mut source);
            let mut body = ChunkedReader::new(&mut from, &limits);
            // Nothing is kept here: this is about what the reader has.
            io::copy(&mut body, &mut io::sink()).unwrap_err()
        });
        let case = format!("{begin:?} {:?}", &again[..again.len().min(10)]);
        assert_eq!(status(&error).as_u16(), expected, "{case}");
        // Each byte of a body may have a frame of its own.
        let most = 100_000 * 6 + limits.header + limits.chunk_extensions + 4096;
        assert!(source.given <= most, "{case}: {} read", source.given);
        assert!(
            bytes <= 4 * limits.header + 2 * 8192,
            "{case}: {bytes} bytes"
        );
    }
}
