//! Properties of every codec.

use std::io::ErrorKind;

use socketserver::framing::{
    BytesMut, Decoder, Encoder, FrameError, Framed, JsonHeader, LengthPrefix, Lines, Netstring,
};

use crate::script::{LimitedWriter, Script, receive};

/// The maximum length of a message for the codecs of this file.
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

/// Returns the frames of the messages, and the end of each.
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
fn assert_all_arrive<C: Codec>(stream: Script, codec: C) {
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

fn glued_frames_are_separated<C: Codec>(codec: &C) {
    let (wire, _) = wire(codec);
    assert_all_arrive(Script::parts([&wire[..]]), codec.clone());
}

fn frames_survive_a_split_at_every_byte<C: Codec>(codec: &C) {
    let (wire, _) = wire(codec);
    for at in 0..=wire.len() {
        let (one, other) = wire.split_at(at);
        assert_all_arrive(Script::parts([one, other]), codec.clone());
    }
    for size in 1..20 {
        assert_all_arrive(Script::parts(wire.chunks(size)), codec.clone());
    }
}

fn truncated_frame_is_detected_at_every_byte<C: Codec>(codec: &C, incomplete: Incomplete) {
    let (wire, ends) = wire(codec);
    for cut in 0..wire.len() {
        let (mut received, end) = receive(&wire[..cut], codec.clone());
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let begin = ends[..whole].last().copied().unwrap_or(0);
        if cut > begin {
            match incomplete {
                Incomplete::IsAnError => assert!(matches!(end, Err(FrameError::UnexpectedEnd))),
                Incomplete::IsTheLastFrame => {
                    end.unwrap();
                    assert_eq!(received.pop().unwrap(), wire[begin..cut]);
                }
            }
        }
        assert_eq!(received, messages()[..whole].to_vec().map_bytes());
    }
}

/// The meaning of bytes after the last complete frame.
#[derive(Clone, Copy)]
enum Incomplete {
    IsAnError,
    IsTheLastFrame,
}

fn errors_of_the_stream_lose_no_message<C: Codec>(codec: &C) {
    let (wire, _) = wire(codec);
    for kind in [ErrorKind::TimedOut, ErrorKind::WouldBlock] {
        let mut framed = Framed::new(Script::with_errors(&wire, kind), codec.clone());
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
    // An interruption by a signal is not reported.
    assert_all_arrive(
        Script::with_errors(&wire, ErrorKind::Interrupted),
        codec.clone(),
    );
}

fn too_long_message_is_rejected<C: Codec>(mut codec: C, mut unlimited: C) {
    let message = "z".repeat(LIMIT + 1);
    let mut wire = BytesMut::new();
    unlimited.encode(message.as_str(), &mut wire).unwrap();
    for size in 1..wire.len() {
        let (received, end) = receive(Script::parts(wire.chunks(size)), codec.clone());
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
        // The codec for lines limits only received lines.
        other => other.unwrap(),
    }
}

fn frame_is_one_write<C: Codec>(codec: &C) {
    let stream = LimitedWriter {
        capacity: usize::MAX,
        ..LimitedWriter::default()
    };
    let mut framed = Framed::new(stream, codec.clone());
    for message in &messages() {
        framed.write(message.as_str()).unwrap();
    }
    assert_eq!(framed.stream().writes, messages().len());
    assert_eq!(framed.stream().taken, wire(codec).0);
}

macro_rules! codecs {
    ($($name:ident: $codec:expr, $unlimited:expr, $incomplete:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn glued_frames_are_separated() {
                super::glued_frames_are_separated(&$codec);
            }

            #[test]
            fn frames_survive_a_split_at_every_byte() {
                super::frames_survive_a_split_at_every_byte(&$codec);
            }

            #[test]
            fn truncated_frame_is_detected_at_every_byte() {
                super::truncated_frame_is_detected_at_every_byte(&$codec, $incomplete);
            }

            #[test]
            fn errors_of_the_stream_lose_no_message() {
                super::errors_of_the_stream_lose_no_message(&$codec);
            }

            #[test]
            fn too_long_message_is_rejected() {
                super::too_long_message_is_rejected($codec, $unlimited);
            }

            #[test]
            fn frame_is_one_write() {
                super::frame_is_one_write(&$codec);
            }
        }
    )*};
}

codecs! {
    lines: Lines::default().max_len(LIMIT), Lines::default(), Incomplete::IsTheLastFrame;
    prefix_u8: LengthPrefix::u8().max_len(LIMIT), LengthPrefix::u8(), Incomplete::IsAnError;
    prefix_u16_be: LengthPrefix::u16_be().max_len(LIMIT), LengthPrefix::u16_be(), Incomplete::IsAnError;
    prefix_u16_le: LengthPrefix::u16_le().max_len(LIMIT), LengthPrefix::u16_le(), Incomplete::IsAnError;
    prefix_u32_be: LengthPrefix::u32_be().max_len(LIMIT), LengthPrefix::u32_be(), Incomplete::IsAnError;
    prefix_u32_le: LengthPrefix::u32_le().max_len(LIMIT), LengthPrefix::u32_le(), Incomplete::IsAnError;
    prefix_u64_be: LengthPrefix::u64_be().max_len(LIMIT), LengthPrefix::u64_be(), Incomplete::IsAnError;
    prefix_u64_le: LengthPrefix::u64_le().max_len(LIMIT), LengthPrefix::u64_le(), Incomplete::IsAnError;
    netstring: Netstring::default().max_len(LIMIT), Netstring::default(), Incomplete::IsAnError;
    json_header: JsonHeader::default().max_body(LIMIT as u64), JsonHeader::default(), Incomplete::IsAnError;
}

// Without the test of truncation, because that splits characters, which is an error of the text and
// has its own test.
mod utf8_lines {
    use super::*;

    fn codec() -> socketserver::framing::Utf8Lines {
        Lines::default().max_len(LIMIT).utf8()
    }

    #[test]
    fn glued_frames_are_separated() {
        super::glued_frames_are_separated(&codec());
    }

    #[test]
    fn frames_survive_a_split_at_every_byte() {
        super::frames_survive_a_split_at_every_byte(&codec());
    }

    #[test]
    fn errors_of_the_stream_lose_no_message() {
        super::errors_of_the_stream_lose_no_message(&codec());
    }

    #[test]
    fn too_long_message_is_rejected() {
        super::too_long_message_is_rejected(codec(), Lines::default().utf8());
    }

    #[test]
    fn frame_is_one_write() {
        super::frame_is_one_write(&codec());
    }
}
