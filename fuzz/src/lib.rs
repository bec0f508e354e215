//! Properties of the framing decoders. The input comes from libFuzzer, or from the random tests in
//! `crates/socketserver/tests/framing`, which include this file and run on a stable compiler.
//!
//! A peer sends the input and closes. For any input:
//!
//! * nothing panics, and reading ends;
//! * the buffers never have more memory than the longest frame and a chunk;
//! * the messages do not depend on how the input is split;
//! * a received message can be sent, and decodes to the same message.

use std::fmt::Debug;
use std::io::{self, Read};
use std::mem::{Discriminant, discriminant};

use socketserver::framing::{
    BytesMut, Decoder, Encoder, FrameError, Framed, JsonHeader, LengthPrefix, Lines, Netstring,
};

/// A short limit, so that frames near it are found.
const LIMIT: usize = 40;

/// The memory of a reader beyond the longest frame.
const CHUNK: usize = 8 * 1024;

pub fn lines(input: &[u8]) {
    check(&Lines::default().max_len(LIMIT), input);
}

pub fn utf8_lines(input: &[u8]) {
    check(&Lines::default().max_len(LIMIT).utf8(), input);
}

/// Tries all seven prefixes on the same input, which is short.
pub fn length_prefix(input: &[u8]) {
    for codec in [
        LengthPrefix::u8(),
        LengthPrefix::u16_be(),
        LengthPrefix::u16_le(),
        LengthPrefix::u32_be(),
        LengthPrefix::u32_le(),
        LengthPrefix::u64_be(),
        LengthPrefix::u64_le(),
    ] {
        check(&codec.max_len(LIMIT), input);
    }
}

pub fn netstring(input: &[u8]) {
    check(&Netstring::default().max_len(LIMIT), input);
}

pub fn json_header(input: &[u8]) {
    let codec = JsonHeader::default()
        .max_header(2 * LIMIT)
        .max_body(LIMIT as u64);
    let whole = check(&codec, input);
    assert_eq!(read_bodies(codec, input), whole);
}

/// The messages, and the kinds of the errors between and after them.
type Outcome = Vec<Result<Vec<u8>, Discriminant<FrameError>>>;

fn check<C>(codec: &C, input: &[u8]) -> Outcome
where
    C: Clone + Decoder<Error = FrameError>,
    C: for<'a> Encoder<&'a C::Item, Error = FrameError>,
    C::Item: AsRef<[u8]> + Debug + PartialEq,
{
    let whole = receive(codec.clone(), input, usize::MAX);
    // Inputs have every length, so reads have every length from one to nine.
    let split = receive(codec.clone(), input, 1 + input.len() % 9);
    assert_eq!(split, whole);
    whole
}

fn receive<C>(codec: C, input: &[u8], step: usize) -> Outcome
where
    C: Clone + Decoder<Error = FrameError>,
    C: for<'a> Encoder<&'a C::Item, Error = FrameError>,
    C::Item: AsRef<[u8]> + Debug + PartialEq,
{
    let limit = codec.buffer_limit() + CHUNK;
    let mut other = codec.clone();
    let mut framed = Framed::new(SmallReads { input, step }, codec);
    let mut outcome = Outcome::new();
    while let Some(result) = framed.read().transpose() {
        assert!(framed.memory() <= limit, "{} bytes", framed.memory());
        if let Ok(item) = &result {
            assert_round_trip(&mut other, item);
        }
        outcome.push(match result {
            Ok(item) => Ok(item.as_ref().to_vec()),
            Err(error) => Err(discriminant(&error)),
        });
        assert!(
            outcome.len() <= input.len() + 1,
            "reading does not end: {outcome:?}"
        );
    }
    assert!(framed.memory() <= limit, "{} bytes", framed.memory());
    outcome
}

fn assert_round_trip<C>(codec: &mut C, item: &C::Item)
where
    C: Decoder<Error = FrameError> + for<'a> Encoder<&'a C::Item, Error = FrameError>,
    C::Item: Debug + PartialEq,
{
    let mut wire = BytesMut::new();
    codec
        .encode(item, &mut wire)
        .expect("a received message can be encoded");
    let back = codec
        .decode(&mut wire)
        .expect("an encoded message can be decoded");
    assert_eq!(back.as_ref(), Some(item));
    assert!(wire.is_empty());
}

/// Receives the messages by `read_body`. A body that the peer cuts short is not a message.
fn read_bodies(codec: JsonHeader, input: &[u8]) -> Outcome {
    let mut framed = Framed::new(SmallReads { input, step: 3 }, codec);
    let mut outcome = Outcome::new();
    loop {
        let mut message = Vec::new();
        let result = match framed.read_body() {
            Ok(None) => return outcome,
            Ok(Some(mut body)) => body.read_to_end(&mut message).map_err(FrameError::from),
            Err(error) => Err(error),
        };
        let cut = matches!(result, Err(FrameError::UnexpectedEnd));
        outcome.push(match result {
            Ok(_) => Ok(message),
            Err(error) => Err(discriminant(&error)),
        });
        if cut {
            return outcome;
        }
    }
}

/// A reader that returns at most `step` bytes at a time.
struct SmallReads<'a> {
    input: &'a [u8],
    step: usize,
}

impl Read for SmallReads<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = buf.len().min(self.step);
        self.input.read(&mut buf[..n])
    }
}
