//! What holds for every codec, however its frames look.

use std::io::ErrorKind;

use socketserver::framing::{
    BytesMut, Decoder, Encoder, FrameError, Framed, JsonHeader, LengthPrefix, Lines, Netstring,
};

use crate::script::{Narrow, Script, receive};

/// The longest message that the codecs here take.
const LIMIT: usize = 100;

trait Codec:
    Clone
    + Decoder<Item: AsRef<[u8]>, Error = FrameError>
    + for<'a> Encoder<&'a str, Error = FrameError>
{
}

impl<C> Codec for C where
    C: Clone
        + Decoder<Item: AsRef<[u8]>, Error = FrameError>
        + for<'a> Encoder<&'a str, Error = FrameError>
{
}

fn messages() -> Vec<String> {
    let longest = "y".repeat(LIMIT);
    ["hello", "", "a\0b:,{}", "", &longest, "naïve \r ☃", "end"]
        .map(String::from)
        .into()
}

/// The frames of the messages, and where each ends.
fn wire<C: Codec>(codec: &C) -> (BytesMut, Vec<usize>) {
    let mut codec = codec.clone();
    let mut wire = BytesMut::new();
    let mut ends = Vec::new();
    for message in messages() {
        codec.encode(message.as_str(), &mut wire).unwrap();
        ends.push(wire.len());
    }
    (wire, ends)
}

#[track_caller]
fn all_arrive<C: Codec>(stream: Script, codec: C) {
    let (received, end) = receive(stream, codec);
    assert_eq!(received, messages().map_bytes());
    end.unwrap();
}

trait MapBytes {
    fn map_bytes(self) -> Vec<Vec<u8>>;
}

impl MapBytes for Vec<String> {
    fn map_bytes(self) -> Vec<Vec<u8>> {
        self.into_iter().map(String::into_bytes).collect()
    }
}

fn glued<C: Codec>(codec: &C) {
    let (wire, _) = wire(codec);
    all_arrive(Script::pieces([&wire[..]]), codec.clone());
}

fn split_at_every_byte<C: Codec>(codec: &C) {
    let (wire, _) = wire(codec);
    for at in 0..=wire.len() {
        let (one, other) = wire.split_at(at);
        all_arrive(Script::pieces([one, other]), codec.clone());
    }
    for size in 1..20 {
        all_arrive(Script::pieces(wire.chunks(size)), codec.clone());
    }
}

fn cut_short_at_every_byte<C: Codec>(codec: &C, unended: Unended) {
    let (wire, ends) = wire(codec);
    for cut in 0..wire.len() {
        let (mut received, end) = receive(&wire[..cut], codec.clone());
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let begin = ends[..whole].last().copied().unwrap_or(0);
        if cut > begin {
            match unended {
                Unended::IsAnError => assert!(matches!(end, Err(FrameError::UnexpectedEnd))),
                Unended::IsTheLast => {
                    end.unwrap();
                    assert_eq!(received.pop().unwrap(), wire[begin..cut]);
                }
            }
        }
        assert_eq!(received, messages()[..whole].to_vec().map_bytes());
    }
}

/// What bytes are, after the last frame, that are none.
#[derive(Clone, Copy)]
enum Unended {
    IsAnError,
    IsTheLast,
}

fn errors_of_the_stream_lose_nothing<C: Codec>(codec: &C) {
    let (wire, _) = wire(codec);
    for kind in [ErrorKind::TimedOut, ErrorKind::WouldBlock] {
        let mut framed = Framed::new(Script::faltering(&wire, kind), codec.clone());
        let mut received = Vec::new();
        let mut errors = 0;
        loop {
            match framed.read() {
                Ok(Some(message)) => received.push(message.as_ref().to_vec()),
                Ok(None) => break,
                Err(FrameError::Io(error)) if error.kind() == kind => errors += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!((received, errors), (messages().map_bytes(), wire.len()));
    }
    // Nobody hears of a signal.
    all_arrive(
        Script::faltering(&wire, ErrorKind::Interrupted),
        codec.clone(),
    );
}

fn what_is_too_long_is_refused<C: Codec>(mut codec: C, mut generous: C) {
    let message = "z".repeat(LIMIT + 1);
    let mut wire = BytesMut::new();
    generous.encode(message.as_str(), &mut wire).unwrap();
    for size in 1..wire.len() {
        let (received, end) = receive(Script::pieces(wire.chunks(size)), codec.clone());
        assert!(received.is_empty());
        let error = end.unwrap_err();
        assert!(matches!(
            error,
            FrameError::TooLong {
                limit: 100,
                claimed: 101..
            }
        ));
        assert!(error.to_string().contains("the limit is 100; raise"));
    }
    let mut none = BytesMut::new();
    match codec.encode(message.as_str(), &mut none) {
        Err(FrameError::Unsendable(_)) => assert!(none.is_empty()),
        // Lines limit what is received.
        other => other.unwrap(),
    }
}

fn a_frame_is_one_write<C: Codec>(codec: &C) {
    let stream = Narrow {
        room: usize::MAX,
        ..Narrow::default()
    };
    let mut framed = Framed::new(stream, codec.clone());
    for message in &messages() {
        framed.write(message.as_str()).unwrap();
    }
    assert_eq!(framed.stream().writes, messages().len());
    assert_eq!(framed.stream().taken, wire(codec).0);
}

macro_rules! codecs {
    ($($name:ident: $codec:expr, $generous:expr, $unended:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn glued() {
                super::glued(&$codec);
            }

            #[test]
            fn split_at_every_byte() {
                super::split_at_every_byte(&$codec);
            }

            #[test]
            fn cut_short_at_every_byte() {
                super::cut_short_at_every_byte(&$codec, $unended);
            }

            #[test]
            fn errors_of_the_stream_lose_nothing() {
                super::errors_of_the_stream_lose_nothing(&$codec);
            }

            #[test]
            fn what_is_too_long_is_refused() {
                super::what_is_too_long_is_refused($codec, $generous);
            }

            #[test]
            fn a_frame_is_one_write() {
                super::a_frame_is_one_write(&$codec);
            }
        }
    )*};
}

codecs! {
    lines: Lines::default().max_len(LIMIT), Lines::default(), Unended::IsTheLast;
    prefix_u8: LengthPrefix::u8().max_len(LIMIT), LengthPrefix::u8(), Unended::IsAnError;
    prefix_u16_be: LengthPrefix::u16_be().max_len(LIMIT), LengthPrefix::u16_be(), Unended::IsAnError;
    prefix_u16_le: LengthPrefix::u16_le().max_len(LIMIT), LengthPrefix::u16_le(), Unended::IsAnError;
    prefix_u32_be: LengthPrefix::u32_be().max_len(LIMIT), LengthPrefix::u32_be(), Unended::IsAnError;
    prefix_u32_le: LengthPrefix::u32_le().max_len(LIMIT), LengthPrefix::u32_le(), Unended::IsAnError;
    prefix_u64_be: LengthPrefix::u64_be().max_len(LIMIT), LengthPrefix::u64_be(), Unended::IsAnError;
    prefix_u64_le: LengthPrefix::u64_le().max_len(LIMIT), LengthPrefix::u64_le(), Unended::IsAnError;
    netstring: Netstring::default().max_len(LIMIT), Netstring::default(), Unended::IsAnError;
    json_header: JsonHeader::default().max_body(LIMIT as u64), JsonHeader::default(), Unended::IsAnError;
}

// Without what cuts a character short: that is an error of the text, and tested as such.
mod utf8_lines {
    use super::*;

    fn codec() -> socketserver::framing::Utf8Lines {
        Lines::default().max_len(LIMIT).utf8()
    }

    #[test]
    fn glued() {
        super::glued(&codec());
    }

    #[test]
    fn split_at_every_byte() {
        super::split_at_every_byte(&codec());
    }

    #[test]
    fn errors_of_the_stream_lose_nothing() {
        super::errors_of_the_stream_lose_nothing(&codec());
    }

    #[test]
    fn what_is_too_long_is_refused() {
        super::what_is_too_long_is_refused(codec(), Lines::default().utf8());
    }

    #[test]
    fn a_frame_is_one_write() {
        super::a_frame_is_one_write(&codec());
    }
}
