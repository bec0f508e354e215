//! What is tried with requests of HTTP, whoever makes up the input: libFuzzer, or the random tests of
//! `crates/socketserver/tests/http`, which include this file.
//!
//! Whatever a peer sends:
//!
//! * nothing panics, and reading comes to its end;
//! * what is understood, and why something is refused, does not depend on how the input is cut;
//! * what is understood is understood alike when it is written anew;
//! * nothing behind a request, or behind a body, is taken.

use std::io::{self, BufRead, BufReader, Read};

use socketserver::http::{
    ChunkedReader, Limits, Problem, RequestHead, StatusCode, Version, header,
};

/// Short, so that what is near them is found.
fn limits() -> Limits {
    Limits::default()
        .request_line(40)
        .header(120)
        .fields(4)
        .chunk_extensions(12)
        .body(60)
}

/// What a client would be told.
type Refused = Option<StatusCode>;

fn refused(error: &io::Error) -> Refused {
    Problem::of(error).map(Problem::status)
}

pub fn http_head(input: &[u8]) {
    let whole = head(input, input.len().max(1));
    // Every length of pieces up to nine, as inputs have every length.
    let pieces = head(input, 1 + input.len() % 9);
    assert_eq!(shown(&whole), shown(&pieces));
    if let Ok(Some((head, length))) = &whole {
        let head_bytes = &input[..*length];
        assert!(head_bytes.ends_with(b"\r\n\r\n"));
        let crs = head_bytes.iter().filter(|byte| **byte == b'\r').count();
        let lfs = head_bytes.iter().filter(|byte| **byte == b'\n').count();
        let both = head_bytes.windows(2).filter(|two| two == b"\r\n").count();
        assert!(crs == both && lfs == both, "a line with another end");
        has_one_framing(head);
        comes_back(head);
    }
    // What is not refused before its end is not because of that.
    let parsed = RequestHead::parse(input, &limits());
    match (parsed, whole) {
        (Ok(Some((_, parsed))), Ok(Some((_, read)))) => assert_eq!(parsed, read),
        (Ok(None), Ok(None) | Err(Some(StatusCode::BAD_REQUEST))) => {}
        (Err(problem), Err(Some(status))) => assert_eq!(problem.status(), status),
        (parsed, read) => panic!("{parsed:?}, but {:?}", shown(&read)),
    }
}

/// The head that the input begins with, and how long it is.
fn head(input: &[u8], step: usize) -> Result<Option<(RequestHead, usize)>, Refused> {
    let mut from = BufReader::with_capacity(step, input);
    match RequestHead::read(&mut from, &limits()) {
        Ok(None) => Ok(None),
        Ok(Some(head)) => {
            let mut rest = Vec::new();
            from.read_to_end(&mut rest).expect("memory");
            assert!(input.ends_with(&rest));
            Ok(Some((head, input.len() - rest.len())))
        }
        Err(error) => Err(refused(&error)),
    }
}

fn shown(head: &Result<Option<(RequestHead, usize)>, Refused>) -> String {
    format!("{head:?}")
}

/// Where two parties could differ, there is nothing to differ about.
fn has_one_framing(head: &RequestHead) {
    let fields = head.headers();
    let lengths = fields.get_all(header::CONTENT_LENGTH).iter().count();
    let codings = fields.get_all(header::TRANSFER_ENCODING).iter().count();
    assert!(lengths + codings <= 1, "{head:?}");
    if let Some(coding) = fields.get(header::TRANSFER_ENCODING) {
        assert!(
            coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
            "{head:?}"
        );
        assert_eq!(head.version(), Version::HTTP_11);
    }
    let hosts = fields.get_all(header::HOST).iter().count();
    assert!(
        hosts == 1 || (hosts == 0 && head.version() == Version::HTTP_10),
        "{head:?}"
    );
}

fn comes_back(head: &RequestHead) {
    let mut wire =
        format!("{} {} {:?}\r\n", head.method(), head.uri(), head.version()).into_bytes();
    for (name, value) in head.headers() {
        wire.extend_from_slice(name.as_str().as_bytes());
        wire.extend_from_slice(b":");
        wire.extend_from_slice(value.as_bytes());
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"\r\n");
    // The target may have become longer by a slash.
    let roomy = limits().request_line(100).header(200);
    let (again, length) = RequestHead::parse(&wire, &roomy)
        .unwrap_or_else(|problem| panic!("{problem}: {}", wire.escape_ascii()))
        .expect("it is whole");
    assert_eq!(length, wire.len());
    assert_eq!(format!("{again:?}"), format!("{head:?}"));
}

pub fn http_chunked(input: &[u8]) {
    let whole = chunked(input, input.len().max(1));
    assert_eq!(chunked(input, 1 + input.len() % 9), whole);
    let Ok((data, taken)) = whole else { return };
    assert!(data.len() <= 60);
    assert!(input[..taken].ends_with(b"\r\n\r\n"));
    let mut wire = Vec::new();
    for chunk in data.chunks(7) {
        wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(chunked(&wire, 5), Ok((data, wire.len())));
}

/// The data, and how long its encoding is.
fn chunked(input: &[u8], step: usize) -> Result<(Vec<u8>, usize), Refused> {
    let mut from = BufReader::with_capacity(step, input);
    let mut body = ChunkedReader::new(&mut from, &limits());
    let mut data = Vec::new();
    match body.read_to_end(&mut data) {
        Ok(_) => {
            assert!(body.trailers().is_some());
            let mut rest = Vec::new();
            from.read_to_end(&mut rest).expect("memory");
            assert!(from.fill_buf().expect("memory").is_empty());
            Ok((data, input.len() - rest.len()))
        }
        Err(error) => {
            assert!(refused(&error).is_some(), "{error}");
            Err(refused(&error))
        }
    }
}
