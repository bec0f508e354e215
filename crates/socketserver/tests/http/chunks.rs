//! The decoder of chunked bodies, on bytes.

use std::io::{BufReader, Read};

use socketserver::http::{ChunkedReader, HttpLimits, Problem};

fn decode(wire: &[u8], limits: &HttpLimits, step: usize) -> Result<(String, usize), u16> {
    let mut from = BufReader::with_capacity(step, wire);
    let mut body = ChunkedReader::new(&mut from, limits);
    let mut data = String::new();
    if let Err(error) = body.read_to_string(&mut data) {
        return Err(Problem::of(&error).unwrap().status().as_u16());
    }
    let mut rest = Vec::new();
    from.read_to_end(&mut rest).unwrap();
    Ok((data, rest.len()))
}

fn status(wire: &[u8]) -> u16 {
    let whole = decode(wire, &HttpLimits::default(), wire.len() + 1);
    assert_eq!(decode(wire, &HttpLimits::default(), 1), whole, "{wire:?}");
    whole.err().unwrap_or(0)
}

#[test]
fn chunks_are_joined() {
    for (wire, expected) in [
        ("0\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("A\r\n0123456789\r\n1\r\n!\r\n0\r\n\r\n", "0123456789!"),
        ("0005\r\nhello\r\n000\r\n\r\n", "hello"),
        ("5;a=b;c=\"d e\"\r\nhello\r\n0;x\r\n\r\n", "hello"),
        ("5 \t;a\r\nhello\r\n0\r\n\r\n", "hello"),
        (
            "5; a = b ;c\t=\t\"\\\";\\\\\"\r\nhello\r\n0\r\n\r\n",
            "hello",
        ),
        ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
        ("1\r\na\r\n0\r\nA: b\r\nC: d\r\n\r\n", "a"),
    ] {
        for step in 1..=wire.len() {
            let wire = format!("{wire}next");
            let decoded = decode(wire.as_bytes(), &HttpLimits::default(), step);
            assert_eq!(decoded, Ok((expected.into(), 4)), "{wire:?} by {step}");
        }
    }
}

#[test]
fn malformed_chunks_are_rejected() {
    for wire in [
        &b""[..],
        b"5",
        b"5\r\nhel",
        b"5\r\nhello",
        b"5\r\nhello\r\n",
        b"0\r\n",
        b"0\r\nA: b\r\n",
        b"\r\n",
        b";a\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n0\r\n\r\n",
        b"1_0\r\n",
        b"1,\r\na\r\n",
        b"1 1\r\na\r\n",
        b"1\na\r\n0\r\n\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1\r\na\r\n0\n\r\n",
        b"1\r\na\r\n0\r\n\n",
        b"1\ra\r\n0\r\n\r\n",
        b"1;\r\r\na\r\n0\r\n\r\n",
        b"1;a\nb\r\na\r\n0\r\n\r\n",
        b"1;\r\na\r\n0\r\n\r\n",
        b"1;;a\r\na\r\n0\r\n\r\n",
        b"1;a=\r\na\r\n0\r\n\r\n",
        b"1;=a\r\na\r\n0\r\n\r\n",
        b"1;a b\r\na\r\n0\r\n\r\n",
        b"1;a \r\na\r\n0\r\n\r\n",
        b"1;a[\r\na\r\n0\r\n\r\n",
        b"1;a=\"b\r\na\r\n0\r\n\r\n",
        b"1;a=\"b\\\"\r\na\r\n0\r\n\r\n",
        b"1;a=\"b\"c\r\na\r\n0\r\n\r\n",
        b"1;a=\"\x0b\"\r\na\r\n0\r\n\r\n",
        b"1\x0b;a\r\na\r\n0\r\n\r\n",
        b"1\x0c;a\r\na\r\n0\r\n\r\n",
        b"1;\x00\r\na\r\n0\r\n\r\n",
        b"1;\x7f\r\na\r\n0\r\n\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"2\r\na\r\n0\r\n\r\n",
        b"1\r\na0\r\n\r\n",
        b"00000000000000001\r\na\r\n0\r\n\r\n",
        b"11111111111111111\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\n b\r\n\r\n",
        b"0\r\nA: b\r\n c\r\n\r\n",
        b"0\r\nA\r\n\r\n",
    ] {
        assert_eq!(status(wire), 400, "{}", wire.escape_ascii());
    }
}

#[test]
fn limits_are_exact() {
    let limits = HttpLimits::default()
        .body(10)
        .chunk_extensions(8)
        .header(20)
        .max_headers(2);
    let status = |wire: &str| decode(wire.as_bytes(), &limits, 3).err().unwrap_or(0);
    assert_eq!(status("a\r\n0123456789\r\n0\r\n\r\n"), 0);
    // The limit applies before any byte of the chunk is read.
    assert_eq!(status("b\r\n"), 413);
    assert_eq!(status("ffffffffffffffff\r\n"), 413);
    assert_eq!(status("5\r\n01234\r\n6\r\n"), 413);
    // The limit applies to the extensions of all chunks together.
    assert_eq!(status("1;a=b\r\n0\r\n1;c=d\r\n1\r\n0\r\n\r\n"), 0);
    assert_eq!(status("1;a=b\r\n0\r\n1;c=d\r\n1\r\n0;e\r\n\r\n"), 400);
    assert_eq!(status(&format!("1;{}", "x".repeat(100))), 400);
    assert_eq!(status("0\r\nA: 1\r\nB: 2\r\n\r\n"), 0);
    assert_eq!(status("0\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n"), 431);
    assert_eq!(status(&format!("0\r\nA: {}\r\n\r\n", "x".repeat(20))), 431);
}

#[test]
fn trailers_are_available_after_the_end_only() {
    let wire = b"1\r\na\r\n0\r\nA: b\r\nA: c\r\n\r\n";
    let mut body = ChunkedReader::new(&wire[..], &HttpLimits::default());
    let mut byte = [0; 8];
    assert_eq!(body.read(&mut byte).unwrap(), 1);
    assert!(body.trailers().is_none());
    assert_eq!(body.read(&mut byte).unwrap(), 0);
    let trailers = body.trailers().unwrap();
    let values: Vec<_> = trailers.get_all("a").iter().collect();
    assert_eq!(values, ["b", "c"]);
}

#[test]
fn maximum_limits_do_not_overflow() {
    let limits = HttpLimits::default()
        .chunk_extensions(usize::MAX)
        .header(usize::MAX)
        .body(u64::MAX);
    let wire = b"5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n";
    assert_eq!(decode(wire, &limits, 7), Ok(("hello".into(), 0)));
}
