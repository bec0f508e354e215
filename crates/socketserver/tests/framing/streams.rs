//! Errors, memory, and moving from one owner to another: what `Framed` does whichever the codec.

use std::io::{self, ErrorKind, Read};

use socketserver::framing::{
    Bytes, BytesMut, Decoder, Encoder, FrameError, Framed, FramedParts, LengthPrefix, Lines,
    Netstring,
};

use crate::script::{Narrow, Script};

const CHUNK: usize = 8 * 1024;

#[test]
fn nothing_is_decoded_after_a_malformed_frame() {
    let mut strings = Framed::new(&b"1:a,oops,1:b,"[..], Netstring::default());
    assert_eq!(strings.read().unwrap().unwrap(), "a");
    assert!(matches!(strings.read(), Err(FrameError::Malformed { .. })));
    assert!(strings.read().unwrap().is_none());
    // Not by another owner, and not by another codec.
    let (stream, parts) = strings.into_parts();
    let mut strings = Framed::from_parts(stream, parts);
    assert!(strings.read_buffered().unwrap().is_none());
    let mut lines = strings.with_codec(Lines::default());
    assert!(lines.read().unwrap().is_none());
    let (_, parts) = lines.into_parts();
    assert_eq!(parts.into_unread(), "oops,1:b,");
}

#[test]
fn a_stream_is_not_read_after_its_end() {
    struct Once(bool);
    impl Read for Once {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            assert!(!std::mem::replace(&mut self.0, true), "read again");
            Ok(0)
        }
    }
    let mut lines = Framed::new(Once(false), Lines::default());
    assert!(lines.frames().next().is_none());
    assert!(lines.frames().next().is_none());
}

#[test]
fn a_line_that_never_ends_costs_no_memory() {
    let wire = io::repeat(b'x').take(50 << 20).chain(&b"\nnext\n"[..]);
    let mut lines = Framed::new(wire, Lines::default().max_len(1000));
    assert!(matches!(lines.read(), Err(FrameError::TooLong { .. })));
    assert!(lines.memory() <= 1002 + CHUNK);
    assert_eq!(lines.read().unwrap().unwrap(), "next");
    assert!(lines.memory() <= 1002 + CHUNK);
    assert!(lines.read().unwrap().is_none());
}

#[test]
fn a_line_byte_by_byte_is_looked_through_once() {
    // If it were not, this would take hours.
    let mut codec = Lines::default().max_len(usize::MAX);
    let mut src = BytesMut::new();
    for _ in 0..4 << 20 {
        src.extend_from_slice(b"x");
        assert!(codec.decode(&mut src).unwrap().is_none());
    }
    src.extend_from_slice(b"\n");
    assert_eq!(codec.decode(&mut src).unwrap().unwrap().len(), 4 << 20);
}

#[test]
fn memory_grows_with_what_arrives_and_shrinks_again() {
    let limit = 1 << 20;
    let mut codec = LengthPrefix::u32_be().max_len(limit);
    let mut wire = BytesMut::new();
    codec.encode(vec![0; limit], &mut wire).unwrap();
    codec.encode("short", &mut wire).unwrap();
    let mut frames = Framed::new(Script::pieces([]), codec);
    let mut arrived = 0;
    let mut most = 0;
    // A read gives one piece, and then a timeout.
    for piece in wire.chunks(5000) {
        arrived += piece.len();
        *frames.stream_mut() = Script::piece_and_error(piece, ErrorKind::TimedOut);
        match frames.read() {
            Ok(frame) => assert_eq!(frame.unwrap().len(), limit),
            Err(FrameError::Io(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        most = most.max(frames.memory());
        assert!(frames.memory() <= 2 * arrived + CHUNK);
    }
    assert!(most > limit && most <= limit + 4 + CHUNK, "{most}");
    assert_eq!(frames.read().unwrap().unwrap(), "short");
    assert!(frames.read().is_err());
    assert_eq!(frames.memory(), CHUNK);
    let (stream, parts) = frames.into_parts();
    assert_eq!(Framed::from_parts(stream, parts).memory(), 0);
}

#[test]
fn a_decoder_that_wants_ever_more_is_stopped() {
    struct Glutton;
    impl Decoder for Glutton {
        type Item = Bytes;
        type Error = FrameError;
        fn decode(&mut self, _: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
            Ok(None)
        }
        fn buffer_limit(&self) -> usize {
            100_000
        }
    }
    let mut frames = Framed::new(io::repeat(0), Glutton);
    assert!(matches!(
        frames.read(),
        Err(FrameError::TooLong { limit: 100_000, .. })
    ));
    assert!(frames.memory() <= 100_000 + CHUNK);
    assert!(frames.read().unwrap().is_none());
}

#[test]
fn what_is_here_is_taken_without_reading() {
    let mut lines = Framed::new(Script::pieces([&b"a\nb\nc"[..], b"c\n"]), Lines::default());
    assert!(lines.read_buffered().unwrap().is_none());
    assert_eq!(lines.read().unwrap().unwrap(), "a");
    assert_eq!(lines.read_buffered().unwrap().unwrap(), "b");
    assert!(lines.read_buffered().unwrap().is_none());
    assert_eq!(lines.read().unwrap().unwrap(), "cc");
}

#[test]
fn what_was_read_too_much_goes_to_the_next_owner() {
    let wire = b"one\ntwo\n3:net,rest";
    let mut lines = Framed::new(&wire[..], Lines::default());
    assert_eq!(lines.read().unwrap().unwrap(), "one");
    let (stream, parts) = lines.into_parts();
    let mut lines = Framed::from_parts(stream, parts);
    assert_eq!(lines.read().unwrap().unwrap(), "two");
    let mut strings = lines.with_codec(Netstring::default());
    assert_eq!(strings.read().unwrap().unwrap(), "net");
    let (stream, parts) = strings.into_parts();
    let unread = parts.into_unread();
    assert_eq!((stream, &unread[..]), (&b""[..], &b"rest"[..]));
    let parts = FramedParts::with_unread(Lines::default(), unread);
    let mut lines = Framed::from_parts(&b" of it\n"[..], parts);
    assert_eq!(lines.read().unwrap().unwrap(), "rest of it");
}

#[test]
fn a_frame_that_was_sent_in_part_is_finished_first() {
    let stream = Narrow {
        room: 6,
        ..Narrow::default()
    };
    let mut strings = Framed::new(stream, Netstring::default());
    let error = strings.write("hello world").unwrap_err();
    assert!(matches!(&error, FrameError::Io(error) if error.kind() == ErrorKind::TimedOut));
    assert_eq!(io::Error::from(error).kind(), ErrorKind::TimedOut);
    assert!(matches!(
        strings.write("too early"),
        Err(FrameError::Unsendable(_))
    ));
    assert_eq!(strings.flush().unwrap_err().kind(), ErrorKind::TimedOut);
    // It goes with its owner, too.
    let (mut stream, parts) = strings.into_parts();
    stream.room = usize::MAX;
    let mut strings = Framed::from_parts(stream, parts);
    strings.flush().unwrap();
    strings.write("next").unwrap();
    assert_eq!(strings.stream().taken, b"11:hello world,4:next,");
}

#[test]
fn an_encoder_that_fails_sends_nothing() {
    struct Half;
    impl Encoder<&str> for Half {
        type Error = io::Error;
        fn encode(&mut self, item: &str, dst: &mut BytesMut) -> io::Result<()> {
            dst.extend_from_slice(item.as_bytes());
            if item == "bad" {
                return Err(io::Error::other("half way"));
            }
            Ok(())
        }
    }
    let mut frames = Framed::new(Vec::new(), Half);
    frames.write("bad").unwrap_err();
    frames.write("good").unwrap();
    assert_eq!(frames.stream(), b"good");
}

#[test]
fn errors_survive_being_io_errors() {
    let error = FrameError::TooLong {
        limit: 1,
        claimed: 2,
    };
    let error = io::Error::from(error);
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let error = FrameError::from(error);
    assert!(matches!(
        error,
        FrameError::TooLong {
            limit: 1,
            claimed: 2
        }
    ));
    let error = io::Error::from(FrameError::UnexpectedEnd);
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    let error = io::Error::from(FrameError::Io(ErrorKind::TimedOut.into()));
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}
