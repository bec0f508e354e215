//! Properties of the HTTP decoders. The input comes from libFuzzer, or from the random tests in
//! `crates/socketserver/tests/http`, which include this file.
//!
//! For any input:
//!
//! * nothing panics, and reading ends;
//! * the result, or the reason for a rejection, does not depend on how the input is split;
//! * a parsed request that is written out again parses to the same request;
//! * nothing behind a request, or behind a body, is consumed.

use std::io::{self, BufRead, BufReader, Read};

use socketserver::http::{
    ChunkedReader, HttpLimits, Problem, RequestHead, StatusCode, Version, header,
};

/// Short limits, so that inputs near them are found.
fn limits() -> HttpLimits {
    HttpLimits::default()
        .request_line(40)
        .header(120)
        .max_headers(4)
        .chunk_extensions(12)
        .body(60)
}

/// The status that a client would receive.
type ErrorStatus = Option<StatusCode>;

fn error_status(error: &io::Error) -> ErrorStatus {
    Problem::of(error).map(Problem::status)
}

pub fn http_head(input: &[u8]) {
    let whole = head(input, input.len().max(1));
    // Inputs have every length, so reads have every length from one to nine.
    let split = head(input, 1 + input.len() % 9);
    assert_eq!(debug_text(&whole), debug_text(&split));
    if let Ok(Some((head, length))) = &whole {
        let head_bytes = &input[..*length];
        assert!(head_bytes.ends_with(b"\r\n\r\n"));
        let cr_count = head_bytes.iter().filter(|byte| **byte == b'\r').count();
        let lf_count = head_bytes.iter().filter(|byte| **byte == b'\n').count();
        let crlf_count = head_bytes.windows(2).filter(|two| two == b"\r\n").count();
        assert!(
            cr_count == crlf_count && lf_count == crlf_count,
            "a line does not end with CRLF"
        );
        assert_single_framing(head);
        assert_round_trip(head);
    }
    // An input that is only rejected at its end is incomplete for `parse`.
    let parsed = RequestHead::parse(input, &limits());
    match (parsed, whole) {
        (Ok(Some((_, parsed))), Ok(Some((_, read)))) => assert_eq!(parsed, read),
        (Ok(None), Ok(None) | Err(Some(StatusCode::BAD_REQUEST))) => {}
        (Err(problem), Err(Some(status))) => assert_eq!(problem.status(), status),
        (parsed, read) => panic!("{parsed:?}, but {:?}", debug_text(&read)),
    }
}

/// Reads the head at the start of the input; returns it with its length.
fn head(input: &[u8], step: usize) -> Result<Option<(RequestHead, usize)>, ErrorStatus> {
    let mut reader = BufReader::with_capacity(step, input);
    match RequestHead::read(&mut reader, &limits()) {
        Ok(None) => Ok(None),
        Ok(Some(head)) => {
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).expect("memory");
            assert!(input.ends_with(&rest));
            Ok(Some((head, input.len() - rest.len())))
        }
        Err(error) => Err(error_status(&error)),
    }
}

fn debug_text(head: &Result<Option<(RequestHead, usize)>, ErrorStatus>) -> String {
    format!("{head:?}")
}

/// Checks that the length of the body and the host are unambiguous.
fn assert_single_framing(head: &RequestHead) {
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

fn assert_round_trip(head: &RequestHead) {
    let mut wire =
        format!("{} {} {:?}\r\n", head.method(), head.uri(), head.version()).into_bytes();
    for (name, value) in head.headers() {
        wire.extend_from_slice(name.as_str().as_bytes());
        wire.extend_from_slice(b":");
        wire.extend_from_slice(value.as_bytes());
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"\r\n");
    // The target may have gained a slash.
    let roomy = limits().request_line(100).header(200);
    let (reparsed, length) = RequestHead::parse(&wire, &roomy)
        .unwrap_or_else(|problem| panic!("{problem}: {}", wire.escape_ascii()))
        .expect("the head is complete");
    assert_eq!(length, wire.len());
    assert_eq!(format!("{reparsed:?}"), format!("{head:?}"));
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

/// Returns the data, and the length of its encoding.
fn chunked(input: &[u8], step: usize) -> Result<(Vec<u8>, usize), ErrorStatus> {
    let mut reader = BufReader::with_capacity(step, input);
    let mut body = ChunkedReader::new(&mut reader, &limits());
    let mut data = Vec::new();
    match body.read_to_end(&mut data) {
        Ok(_) => {
            assert!(body.trailers().is_some());
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).expect("memory");
            assert!(reader.fill_buf().expect("memory").is_empty());
            Ok((data, input.len() - rest.len()))
        }
        Err(error) => {
            assert!(error_status(&error).is_some(), "{error}");
            Err(error_status(&error))
        }
    }
}
