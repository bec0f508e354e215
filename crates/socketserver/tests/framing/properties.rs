//! Properties of all messages, all bytes, and all splits.

use proptest::collection::vec;
use proptest::prelude::*;
use socketserver::framing::{
    BytesMut, Decoder, Encoder, FrameError, JsonHeader, LengthPrefix, Lines, Netstring,
};

use crate::script::{Script, receive};
use crate::targets;

fn assert_arrives<C>(mut codec: C, messages: &[Vec<u8>], cuts: &[usize])
where
    C: Decoder<Item: AsRef<[u8]>, Error = FrameError>,
    C: for<'a> Encoder<&'a [u8], Error = FrameError>,
{
    let mut wire = BytesMut::new();
    for message in messages {
        codec.encode(&message[..], &mut wire).unwrap();
    }
    let mut rest = &wire[..];
    let mut parts = Vec::new();
    for cut in cuts {
        let (part, after) = rest.split_at((*cut).min(rest.len()));
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    let (received, end) = receive(Script::parts(parts), codec);
    end.unwrap();
    assert_eq!(received, messages);
}

proptest! {
    #[test]
    fn messages_survive_any_split(
        mut messages in vec(vec(any::<u8>(), 0..300), 0..8),
        cuts in vec(0..200_usize, 0..20),
    ) {
        assert_arrives(LengthPrefix::u16_be(), &messages, &cuts);
        assert_arrives(LengthPrefix::u64_le(), &messages, &cuts);
        assert_arrives(Netstring::default(), &messages, &cuts);
        assert_arrives(JsonHeader::default(), &messages, &cuts);
        for message in &mut messages {
            message.retain(|byte| *byte != b'\n');
        }
        assert_arrives(Lines::default(), &messages, &cuts);
    }

    #[test]
    fn large_messages_survive_any_split(
        sizes in vec(0..100_000_usize, 1..4),
        cuts in vec(0..30_000_usize, 0..20),
    ) {
        let messages: Vec<_> = sizes.iter().map(|size| vec![b'm'; *size]).collect();
        assert_arrives(LengthPrefix::u32_be(), &messages, &cuts);
        assert_arrives(Netstring::default(), &messages, &cuts);
        assert_arrives(JsonHeader::default(), &messages, &cuts);
        assert_arrives(Lines::default().max_len(100_000), &messages, &cuts);
    }

    #[test]
    fn arbitrary_bytes_cause_no_panic(bytes in vec(any::<u8>(), 0..400)) {
        targets::lines(&bytes);
        targets::utf8_lines(&bytes);
        targets::length_prefix(&bytes);
        targets::netstring(&bytes);
        targets::json_header(&bytes);
    }
}
