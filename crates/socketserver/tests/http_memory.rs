//! A peer that sends without end does not exceed a limit by more than a buffer, and memory is
//! allocated for received bytes, never for an announced length. The binary has one test, because it
//! counts all allocations.

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

use std::alloc::System;
use std::io::{self, BufReader, Read};

use socketserver::http::{ChunkedReader, HttpLimits, Problem, RequestHead, StatusCode};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A reader that returns a prefix, and then repeats a pattern without end.
struct Endless<'a> {
    prefix: &'a [u8],
    pattern: &'a [u8],
    at: usize,
    returned: usize,
}

impl<'a> Endless<'a> {
    fn new(prefix: &'a str, pattern: &'a str) -> Self {
        Self {
            prefix: prefix.as_bytes(),
            pattern: pattern.as_bytes(),
            at: 0,
            returned: 0,
        }
    }
}

impl Read for Endless<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = if self.prefix.is_empty() {
            let rest = &self.pattern[self.at..];
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            self.at = (self.at + n) % self.pattern.len();
            n
        } else {
            self.prefix.read(buf)?
        };
        self.returned += n;
        Ok(n)
    }
}

/// Returns the sum of all allocations of `call`, which is at least the peak of its memory.
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

// One test, because the memory of another test would be counted, too.
#[test]
fn memory_stays_within_the_limits() {
    check_heads();
    check_chunked_bodies();
}

fn check_heads() {
    let limits = HttpLimits::default();
    let maximum = limits.request_line + limits.header;
    let long = "x".repeat(1000);
    let field = format!("A: {long}\r\n");
    let start = "GET / HTTP/1.1\r\nHost: a\r\n";
    for (prefix, pattern, expected) in [
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
        let mut source = Endless::new(prefix, pattern);
        let (error, bytes) = allocated(|| {
            let mut from = BufReader::with_capacity(4096, &mut source);
            RequestHead::read(&mut from, &limits).unwrap_err()
        });
        let case = format!("{prefix:?} {:?}", &pattern[..pattern.len().min(10)]);
        assert_eq!(status(&error).as_u16(), expected, "{case}");
        assert!(
            source.returned <= maximum + 4096,
            "{case}: {} read",
            source.returned
        );
        // A growing vector was half as large before, and a quarter before that.
        assert!(bytes <= 4 * maximum + 4096, "{case}: {bytes} bytes");
    }
    // A head within its limits takes no more than a small multiple of them, either.
    let shortest = format!("{start}{}\r\n", "a:\r\n".repeat(limits.max_headers - 1));
    let (head, bytes) = allocated(|| RequestHead::parse(shortest.as_bytes(), &limits));
    assert!(head.unwrap().is_some());
    assert!(bytes <= 4 * maximum, "{bytes} bytes");
}

fn check_chunked_bodies() {
    let limits = HttpLimits::default().body(100_000);
    let long = format!("A: {}\r\n", "x".repeat(1000));
    for (prefix, pattern, expected) in [
        // No memory for the announced length.
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
        let mut source = Endless::new(prefix, pattern);
        let (error, bytes) = allocated(|| {
            let mut from = BufReader::with_capacity(4096, &mut source);
            let mut body = ChunkedReader::new(&mut from, &limits);
            // The body is discarded: the test measures the memory of the reader only.
            io::copy(&mut body, &mut io::sink()).unwrap_err()
        });
        let case = format!("{prefix:?} {:?}", &pattern[..pattern.len().min(10)]);
        assert_eq!(status(&error).as_u16(), expected, "{case}");
        // Each byte of a body may have a chunk of its own.
        let maximum = 100_000 * 6 + limits.header + limits.chunk_extensions + 4096;
        assert!(
            source.returned <= maximum,
            "{case}: {} read",
            source.returned
        );
        assert!(
            bytes <= 4 * limits.header + 2 * 8192,
            "{case}: {bytes} bytes"
        );
    }
}
