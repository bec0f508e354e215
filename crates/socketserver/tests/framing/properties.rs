//! What holds for all messages, all bytes, and all ways to cut them.

use proptest::collection::vec;
use proptest::prelude::*;
use socketserver::framing::{
    BytesMut, Decoder, Encoder, FrameError, JsonHeader, LengthPrefix, Lines, Netstring,
};

use crate::script::{Script, receive};
use crate::targets;

fn arrives<C>(mut codec: C, messages: &[Vec<u8>], cuts: &[usize])
where
    C: Decoder<Item: AsRef<[u8]>, Error = FrameError>,
    C: for<'a> Encoder<&'a [u8], Error = FrameError>,
{
    let mut wire = BytesMut::new();
    for message in messages {
        codec.encode(&message[..], &mut wire).unwrap();
    }
    let mut rest = &wire[..];
    let mut pieces = Vec::new();
    for cut in cuts {
        let (piece, after) = rest.split_at((*cut).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    let (received, end) = receive(Script::pieces(pieces), codec);
    end.unwrap();
    assert_eq!(received, messages);
}

proptest! {
    #[test]
    fn messages_survive_any_cut(
        mut messages in vec(vec(any::<u8>(), 0..300), 0..8),
        cuts in vec(0..200_usize, 0..20),
    ) {
        arrives(LengthPrefix::u16_be(), &messages, &cuts);
        arrives(LengthPrefix::u64_le(), &messages, &cuts);
        arrives(Netstring::default(), &messages, &cuts);
        arrives(JsonHeader::default(), &messages, &cuts);
        for message in &mut messages {
            message.retain(|byte| *byte != b'\n');
        }
        arrives(Lines::default(), &messages, &cuts);
    }

    #[test]
    fn large_messages_survive_any_cut(
        sizes in vec(0..100_000_usize, 1..4),
        cuts in vec(0..30_000_usize, 0..20),
    ) {
        let messages: Vec<_> = sizes.iter().map(|size| vec![b'm'; *size]).collect();
        arrives(LengthPrefix::u32_be(), &messages, &cuts);
        arrives(Netstring::default(), &messages, &cuts);
        arrives(JsonHeader::default(), &messages, &cuts);
        arrives(Lines::default().max_len(100_000), &messages, &cuts);
    }

    #[test]
    fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..400)) {
        targets::lines(&bytes);
        targets::utf8_lines(&bytes);
        targets::length_prefix(&bytes);
        targets::netstring(&bytes);
        targets::json_header(&bytes);
    }
}
