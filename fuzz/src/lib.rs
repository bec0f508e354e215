//! What is tried with each decoder, whoever makes up the input: libFuzzer, or the random tests of
//! `crates/socketserver/tests/framing`, which include this file and run on a stable compiler.
//!
//! A peer sends the input, and ends. Whatever it is:
//!
//! * nothing panics, and reading comes to its end;
//! * the buffers never have more memory than the longest frame and a chunk;
//! * the messages are the same, however the input is cut into pieces;
//! * a message that was received can be sent, and comes back as it was.

use std::fmt::Debug;
use std::io::{self, Read};
use std::mem::{Discriminant, discriminant};

use socketserver::framing::{
    BytesMut, Decoder, Encoder, FrameError, Framed, JsonHeader, LengthPrefix, Lines, Netstring,
};

/// Short, so that frames near it are found.
const LIMIT: usize = 40;

/// What a reader adds to the longest frame.
const CHUNK: usize = 8 * 1024;

pub fn lines(input: &[u8]) {
    check(&Lines::default().max_len(LIMIT), input);
}

pub fn utf8_lines(input: &[u8]) {
    check(&Lines::default().max_len(LIMIT).utf8(), input);
}

/// All seven prefixes have the same input: it is short.
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
    assert_eq!(in_pieces(codec, input), whole);
}

/// The messages, and of which kind the errors between and after them are.
type Outcome = Vec<Result<Vec<u8>, Discriminant<FrameError>>>;

fn check<C>(codec: &C, input: &[u8]) -> Outcome
where
    C: Clone + Decoder<Error = FrameError>,
    C: for<'a> Encoder<&'a C::Item, Error = FrameError>,
    C::Item: AsRef<[u8]> + Debug + PartialEq,
{
    let whole = receive(codec.clone(), input, usize::MAX);
    // Every length of pieces up to nine, as inputs have every length.
    let pieces = receive(codec.clone(), input, 1 + input.len() % 9);
    assert_eq!(pieces, whole);
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
    let mut framed = Framed::new(Pieces { input, step }, codec);
    let mut outcome = Outcome::new();
    while let Some(result) = framed.read().transpose() {
        assert!(framed.memory() <= limit, "{} bytes", framed.memory());
        if let Ok(item) = &result {
            comes_back(&mut other, item);
        }
        outcome.push(match result {
            Ok(item) => Ok(item.as_ref().to_vec()),
            Err(error) => Err(discriminant(&error)),
        });
        assert!(outcome.len() <= input.len() + 1, "no end: {outcome:?}");
    }
    assert!(framed.memory() <= limit, "{} bytes", framed.memory());
    outcome
}

fn comes_back<C>(codec: &mut C, item: &C::Item)
where
    C: Decoder<Error = FrameError> + for<'a> Encoder<&'a C::Item, Error = FrameError>,
    C::Item: Debug + PartialEq,
{
    let mut wire = BytesMut::new();
    codec.encode(item, &mut wire).expect("it was received");
    let back = codec.decode(&mut wire).expect("a frame");
    assert_eq!(back.as_ref(), Some(item));
    assert!(wire.is_empty());
}

/// The same by `read_body`. A body that its peer cuts short is no message.
fn in_pieces(codec: JsonHeader, input: &[u8]) -> Outcome {
    let mut framed = Framed::new(Pieces { input, step: 3 }, codec);
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

/// Gives no more than `step` bytes at a time.
struct Pieces<'a> {
    input: &'a [u8],
    step: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = buf.len().min(self.step);
        self.input.read(&mut buf[..n])
    }
}
