//! Codecs of tokio-util on blocking streams.

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

use std::io::{self, ErrorKind, Read};

use socketserver::framing::{BytesMut, Encoder, Framed, TokioCodec};
use tokio_util::codec::{AnyDelimiterCodec, LengthDelimitedCodec, LinesCodec, LinesCodecError};

/// A reader that returns one byte at a time.
struct OneByte<'a>(&'a [u8]);

impl Read for OneByte<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = buf.len().min(1);
        self.0.read(&mut buf[..n])
    }
}

#[test]
fn lines_codec_works() {
    let codec = || TokioCodec::new(LinesCodec::new_with_max_length(10), 12);
    let mut lines = Framed::new(OneByte(b"one\r\n\ntwo"), codec());
    let all: Vec<_> = lines.frames().map(Result::unwrap).collect();
    assert_eq!(all, ["one", "", "two"]);

    // Errors of the codec keep their type.
    let mut lines = Framed::new(&b"much too long\nshort\n"[..], codec());
    let error = lines.read().unwrap_err();
    assert!(matches!(error, LinesCodecError::MaxLineLengthExceeded));
    assert!(lines.read().unwrap().is_none());

    let mut lines = Framed::new(Vec::new(), codec());
    lines.write("a line").unwrap();
    assert_eq!(lines.stream(), b"a line\n");
}

#[test]
fn length_delimited_codec_works() {
    let codec = || {
        let codec = LengthDelimitedCodec::builder()
            .length_field_type::<u16>()
            .max_frame_length(1 << 15)
            .new_codec();
        TokioCodec::new(codec, (1 << 15) + 2)
    };
    let mut wire = BytesMut::new();
    let long = "x".repeat(1 << 15);
    for message in ["hello", "", &long] {
        codec().encode(message.as_bytes(), &mut wire).unwrap();
    }
    let mut frames = Framed::new(OneByte(&wire), codec());
    for message in ["hello", "", &long] {
        assert_eq!(frames.read().unwrap().unwrap(), message);
    }
    assert!(frames.read().unwrap().is_none());

    let mut frames = Framed::new(&b"\xff\xff"[..], codec());
    assert_eq!(frames.read().unwrap_err().kind(), ErrorKind::InvalidData);
    let mut frames = Framed::new(&b"\0\x05hel"[..], codec());
    frames.read().unwrap_err();
    assert!(frames.read().unwrap().is_none());
}

#[test]
fn codec_without_a_limit_gets_one() {
    let codec = TokioCodec::new(AnyDelimiterCodec::new(b";".to_vec(), b";".to_vec()), 1000);
    let mut parts = Framed::new(io::repeat(b'x'), codec);
    parts.read().unwrap_err();
    assert!(parts.memory() <= 1000 + 8192);
    assert!(parts.read().unwrap().is_none());
}
