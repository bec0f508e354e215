//! Properties of `Framed` that do not depend on the codec: errors, memory, and a change of the
//! owner.

use std::io::{self, ErrorKind, Read};

use socketserver::framing::{
    Bytes, BytesMut, Decoder, Encoder, FrameError, Framed, FramedParts, LengthPrefix, Lines,
    Netstring,
};

use crate::script::{LimitedWriter, Script};

const CHUNK: usize = 8 * 1024;

#[test]
fn no_frame_is_decoded_after_a_malformed_one() {
    let mut strings = Framed::new(&b"1:a,oops,1:b,"[..], Netstring::default());
    assert_eq!(strings.read().unwrap().unwrap(), "a");
    assert!(matches!(strings.read(), Err(FrameError::Malformed { .. })));
    assert!(strings.read().unwrap().is_none());
    // Neither by another owner nor by another codec.
    let (stream, parts) = strings.into_parts();
    let mut strings = Framed::from_parts(stream, parts);
    assert!(strings.read_buffered().unwrap().is_none());
    let mut lines = strings.with_codec(Lines::default());
    assert!(lines.read().unwrap().is_none());
    let (_, parts) = lines.into_parts();
    assert_eq!(parts.into_unread(), "oops,1:b,");
}

#[test]
fn stream_is_not_read_after_its_end() {
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
fn endless_line_takes_no_memory() {
    let wire = io::repeat(b'x').take(50 << 20).chain(&b"\nnext\n"[..]);
    let mut lines = Framed::new(wire, Lines::default().max_len(1000));
    assert!(matches!(lines.read(), Err(FrameError::TooLong { .. })));
    assert!(lines.memory() <= 1002 + CHUNK);
    assert_eq!(lines.read().unwrap().unwrap(), "next");
    assert!(lines.memory() <= 1002 + CHUNK);
    assert!(lines.read().unwrap().is_none());
}

#[test]
fn slow_line_is_searched_only_once() {
    // A repeated search from the start would take hours.
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
fn memory_follows_the_received_bytes() {
    let limit = 1 << 20;
    let mut codec = LengthPrefix::u32_be().max_len(limit);
    let mut wire = BytesMut::new();
    codec.encode(vec![0; limit], &mut wire).unwrap();
    codec.encode("short", &mut wire).unwrap();
    let mut frames = Framed::new(Script::parts([]), codec);
    let mut arrived = 0;
    let mut peak = 0;
    // Each read returns one part, and then a timeout.
    for part in wire.chunks(5000) {
        arrived += part.len();
        *frames.stream_mut() = Script::part_and_error(part, ErrorKind::TimedOut);
        match frames.read() {
            Ok(frame) => assert_eq!(frame.unwrap().len(), limit),
            Err(FrameError::Io(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        peak = peak.max(frames.memory());
        assert!(frames.memory() <= 2 * arrived + CHUNK);
    }
    assert!(peak > limit && peak <= limit + 4 + CHUNK, "{peak}");
    assert_eq!(frames.read().unwrap().unwrap(), "short");
    assert!(frames.read().is_err());
    assert_eq!(frames.memory(), CHUNK);
    let (stream, parts) = frames.into_parts();
    assert_eq!(Framed::from_parts(stream, parts).memory(), 0);
}

#[test]
fn decoder_that_never_completes_is_limited() {
    struct NeverComplete;
    impl Decoder for NeverComplete {
        type Item = Bytes;
        type Error = FrameError;
        fn decode(&mut self, _: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
            Ok(None)
        }
        fn buffer_limit(&self) -> usize {
            100_000
        }
    }
    let mut frames = Framed::new(io::repeat(0), NeverComplete);
    assert!(matches!(
        frames.read(),
        Err(FrameError::TooLong { limit: 100_000, .. })
    ));
    assert!(frames.memory() <= 100_000 + CHUNK);
    assert!(frames.read().unwrap().is_none());
}

#[test]
fn buffered_frames_are_taken_without_a_read() {
    let mut lines = Framed::new(Script::parts([&b"a\nb\nc"[..], b"c\n"]), Lines::default());
    assert!(lines.read_buffered().unwrap().is_none());
    assert_eq!(lines.read().unwrap().unwrap(), "a");
    assert_eq!(lines.read_buffered().unwrap().unwrap(), "b");
    assert!(lines.read_buffered().unwrap().is_none());
    assert_eq!(lines.read().unwrap().unwrap(), "cc");
}

#[test]
fn unread_bytes_go_to_the_next_owner() {
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
fn partially_sent_frame_is_completed_first() {
    let stream = LimitedWriter {
        capacity: 6,
        ..LimitedWriter::default()
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
    // The unsent part belongs to the parts that the next owner gets.
    let (mut stream, parts) = strings.into_parts();
    stream.capacity = usize::MAX;
    let mut strings = Framed::from_parts(stream, parts);
    strings.flush().unwrap();
    strings.write("next").unwrap();
    assert_eq!(strings.stream().taken, b"11:hello world,4:next,");
}

#[test]
fn failing_encoder_sends_nothing() {
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
fn errors_survive_conversion_to_io_errors() {
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
