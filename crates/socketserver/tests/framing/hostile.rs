//! Invalid inputs of single formats.

use std::error::Error as _;
use std::io;

use socketserver::framing::{
    BytesMut, Decoder, Encoder, FrameError, Framed, JsonHeader, LengthPrefix, Lines, Netstring,
};

use crate::script::{Script, receive};

#[track_caller]
fn read_error<D: Decoder<Error = FrameError>>(codec: D, wire: &[u8]) -> FrameError
where
    D::Item: AsRef<[u8]>,
{
    let (received, end) = receive(wire, codec);
    assert!(received.is_empty(), "{received:?}");
    end.unwrap_err()
}

#[track_caller]
fn assert_malformed<D: Decoder<Error = FrameError>>(codec: D, wire: &[u8], expected_text: &str)
where
    D::Item: AsRef<[u8]>,
{
    let error = read_error(codec, wire);
    assert!(matches!(error, FrameError::Malformed { .. }), "{error:?}");
    assert!(error.to_string().contains(expected_text), "{error}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidData);
}

#[track_caller]
fn assert_too_long<D: Decoder<Error = FrameError>>(codec: D, wire: &[u8], expected: (u64, u64))
where
    D::Item: AsRef<[u8]>,
{
    match read_error(codec, wire) {
        FrameError::TooLong { limit, claimed } => assert_eq!((limit, claimed), expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn line_feeds_end_lines_and_carriage_returns_are_trimmed() {
    let wire = b"one\ntwo\r\n\n\r\nthree\r\r\nfour\rfour\nfive\r";
    let expected = ["one", "two", "", "", "three\r", "four\rfour", "five\r"];
    for size in 1..=wire.len() {
        let (received, end) = receive(Script::parts(wire.chunks(size)), Lines::default());
        end.unwrap();
        assert_eq!(received, expected.map(str::as_bytes), "in parts of {size}");
    }
}

#[test]
fn line_ending_does_not_count_for_the_limit() {
    for (wire, fits) in [
        ("12345\n", true),
        ("12345\r\n", true),
        ("12345", true),
        ("12345\r\r\n", false),
        ("12345\r", false),
        ("12345\rx\n", false),
        ("123456\n", false),
        ("123456\r\n", false),
        ("123456", false),
    ] {
        for size in 1..=wire.len() {
            let parts = Script::parts(wire.as_bytes().chunks(size));
            let (received, end) = receive(parts, Lines::default().max_len(5));
            assert_eq!(end.is_ok(), fits, "{wire:?} in parts of {size}");
            assert_eq!(received.len(), usize::from(fits));
        }
    }
}

#[test]
fn line_with_a_line_feed_is_not_encoded() {
    let mut wire = BytesMut::new();
    let mut codec = Lines::default();
    let error = codec.encode("GET /\nDELETE /", &mut wire).unwrap_err();
    assert!(error.to_string().contains("line end"), "{error}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    codec.encode("\r", &mut wire).unwrap();
    assert_eq!(wire, "\r\r\n");
}

#[test]
fn invalid_utf8_loses_one_line_only() {
    let wire = &b"\xff\xfe\nna\xc3\xafve\n\xc3"[..];
    let mut lines = Framed::new(wire, Lines::default().utf8());
    let error = lines.read().unwrap_err();
    assert!(
        error
            .source()
            .unwrap()
            .to_string()
            .contains("invalid utf-8")
    );
    assert_eq!(lines.read().unwrap().unwrap(), "naïve");
    assert!(matches!(lines.read(), Err(FrameError::Malformed { .. })));
    assert!(lines.read().unwrap().is_none());
}

#[test]
fn announced_length_above_the_limit_is_too_long() {
    let ones = [0xff; 16];
    assert_too_long(LengthPrefix::u64_be(), &ones, (8 << 20, u64::MAX));
    assert_too_long(LengthPrefix::u64_le(), &ones, (8 << 20, u64::MAX));
    assert_too_long(LengthPrefix::u32_be(), &ones, (8 << 20, u32::MAX.into()));
    assert_too_long(
        LengthPrefix::u16_le().max_len(9),
        &ones,
        (9, u16::MAX.into()),
    );
    assert_too_long(LengthPrefix::u8().max_len(9), &ones, (9, 255));
    // Without a limit, no sum may overflow.
    let error = read_error(LengthPrefix::u64_be().max_len(usize::MAX), &ones);
    assert!(matches!(error, FrameError::UnexpectedEnd));
}

#[test]
fn body_above_the_range_of_its_prefix_is_not_encoded() {
    let mut wire = BytesMut::new();
    for (mut codec, maximum) in [
        (LengthPrefix::u8().max_len(usize::MAX), 255),
        (LengthPrefix::u16_le().max_len(usize::MAX), 65_535),
    ] {
        let body = vec![0; maximum + 1];
        let error = codec.encode(&body, &mut wire).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("more than the {maximum} ")),
            "{error}"
        );
        assert!(wire.is_empty());
        codec.encode(&body[1..], &mut wire).unwrap();
        assert_eq!(codec.decode(&mut wire).unwrap().unwrap().len(), maximum);
    }
}

#[test]
fn invalid_netstrings_are_malformed() {
    for (wire, expected_text) in [
        ("05:hello,", "zero"),
        ("00:,", "zero"),
        (":hello,", "digits"),
        ("-1:x,", "digits"),
        ("+5:hello,", "digits"),
        (" 5:hello,", "digits"),
        ("5 :hello,", "digits"),
        ("0x5:hello,", "digits"),
        ("5;hello,", "digits"),
        ("5:hello;", "comma"),
        ("5:hello\n", "comma"),
        ("0:x", "comma"),
    ] {
        assert_malformed(Netstring::default(), wire.as_bytes(), expected_text);
    }
}

#[test]
fn netstring_above_the_limit_is_too_long() {
    let codec = || Netstring::default().max_len(10);
    assert_too_long(codec(), b"11:hello worlds", (10, 11));
    assert_too_long(codec(), b"18446744073709551615:", (10, u64::MAX));
    assert_too_long(codec(), b"99999999999999999999:", (10, u64::MAX));
    // So many digits that the decoder does not wait for their end.
    assert_too_long(codec(), &[b'9'; 21], (10, u64::MAX));
    let endless = Netstring::default().max_len(usize::MAX);
    assert!(matches!(
        read_error(endless.clone(), b"18446744073709551615:x"),
        FrameError::UnexpectedEnd
    ));
    assert_too_long(endless, &[b'9'; 1000], (u64::MAX, u64::MAX));
}

fn frame(header: &str) -> Vec<u8> {
    let mut frame = i32::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    frame.extend_from_slice(header.as_bytes());
    frame
}

#[test]
fn invalid_json_headers_are_malformed() {
    for length in [-1, i32::MIN] {
        assert_malformed(JsonHeader::default(), &length.to_le_bytes(), "negative");
    }
    for header in [
        "",
        "{",
        "{dataBodyLength: 5}",
        "{\"dataBodyLength\": 5}}",
        "{\"dataBodyLength\": 05}",
    ] {
        assert_malformed(JsonHeader::default(), &frame(header), "not JSON");
    }
    let mut latin = frame("{\"dataBodyLength\": 0, \"x\": \"n__ve\"}");
    let at = latin.iter().position(|byte| *byte == b'_').unwrap();
    latin[at] = 0xef;
    assert_malformed(JsonHeader::default(), &latin, "not JSON");
    let deep = "[".repeat(4000);
    assert_malformed(JsonHeader::default(), &frame(&deep), "not JSON");
    for header in [
        "{}",
        "[5]",
        "5",
        "null",
        "\"dataBodyLength\"",
        "{\"databodylength\": 5}",
        "{\"dataBodyLength\": -5}",
        "{\"dataBodyLength\": 5.0}",
        "{\"dataBodyLength\": 1e3}",
        "{\"dataBodyLength\": \"5\"}",
        "{\"dataBodyLength\": null}",
        "{\"dataBodyLength\": [5]}",
        "{\"dataBodyLength\": 18446744073709551616}",
        "{\"nested\": {\"dataBodyLength\": 5}}",
    ] {
        assert_malformed(JsonHeader::default(), &frame(header), "dataBodyLength");
    }
}

#[test]
fn json_header_or_body_above_the_limit_is_too_long() {
    assert_too_long(
        JsonHeader::default(),
        &i32::MAX.to_le_bytes(),
        (4096, i32::MAX as u64),
    );
    assert_too_long(JsonHeader::default(), &4097_i32.to_le_bytes(), (4096, 4097));
    let huge = frame("{\"dataBodyLength\": 18446744073709551615}");
    assert_too_long(JsonHeader::default(), &huge, (8 << 20, u64::MAX));
    let endless = JsonHeader::default()
        .max_body(u64::MAX)
        .max_header(usize::MAX);
    assert!(matches!(
        read_error(endless, &huge),
        FrameError::UnexpectedEnd
    ));
}

#[test]
fn json_headers_of_other_writers_are_accepted() {
    for header in [
        "{\"dataBodyLength\":2}",
        " {\n\t\"dataBodyLength\" : 2 } ",
        "{\"charset\": \"gbk\", \"dataBodyLength\": 2, \"more\": {\"dataBodyLength\": 7}}",
        "{\"dataBodyLength\": 7, \"dataBodyLength\": 2}",
        "{\"data\\u0042odyLength\": 2}",
    ] {
        let mut wire = frame(header);
        wire.extend_from_slice(b"hi");
        let (received, end) = receive(&wire[..], JsonHeader::default());
        end.unwrap();
        assert_eq!(received, [b"hi"], "{header}");
    }
}
