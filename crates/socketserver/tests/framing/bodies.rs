//! Bodies that are read and written in parts.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use socketserver::framing::{FrameError, Framed, JsonHeader};

use crate::script::{LimitedWriter, Script};

fn head(length: u64) -> Vec<u8> {
    let mut frames = Framed::new(Vec::new(), JsonHeader::default().max_body(u64::MAX));
    let _ = frames.write_body(length).unwrap();
    frames.stream().clone()
}

fn frame(body: &str) -> Vec<u8> {
    let mut frames = Framed::new(Vec::new(), JsonHeader::default());
    frames.write(body).unwrap();
    frames.stream().clone()
}

#[test]
fn headers_equal_those_of_python() {
    // struct.pack("<i", len(h)) + h, where h = json.dumps({"dataBodyLength": n}).encode()
    assert_eq!(head(0), b"\x15\0\0\0{\"dataBodyLength\": 0}");
    assert_eq!(head(1024), b"\x18\0\0\0{\"dataBodyLength\": 1024}");
    assert_eq!(
        head(u64::MAX),
        b"\x28\0\0\0{\"dataBodyLength\": 18446744073709551615}"
    );
    assert_eq!(frame("hi"), [&head(2)[..], b"hi"].concat());
}

#[test]
fn large_body_is_streamed_with_little_memory() {
    const SIZE: u64 = 64 << 20;
    let (local, remote) = UnixStream::pair().unwrap();
    let codec = || JsonHeader::default().max_body(u64::MAX);
    let peer = std::thread::spawn(move || {
        let mut frames = Framed::new(remote, codec());
        let mut body = frames.write_body(SIZE).unwrap();
        io::copy(&mut io::repeat(b'b').take(SIZE), &mut body).unwrap();
        body.finish().unwrap();
        frames.write("after").unwrap();
        assert!(frames.memory() <= 8192);
    });
    let mut frames = Framed::new(local, codec());
    let mut body = frames.read_body().unwrap().unwrap();
    assert_eq!(body.remaining(), SIZE);
    assert_eq!(io::copy(&mut body, &mut io::sink()).unwrap(), SIZE);
    assert_eq!(body.remaining(), 0);
    assert!(frames.memory() <= 8192);
    assert_eq!(frames.read().unwrap().unwrap(), "after");
    assert!(frames.read_body().unwrap().is_none());
    peer.join().unwrap();
}

#[test]
fn bodies_survive_a_split_at_every_byte() {
    let wire = [frame("hello"), frame(""), frame("world")].concat();
    for at in 0..=wire.len() {
        let (one, other) = wire.split_at(at);
        let mut frames = Framed::new(Script::parts([one, other]), JsonHeader::default());
        for expected in ["hello", "", "world"] {
            let mut text = String::new();
            let mut body = frames.read_body().unwrap().unwrap();
            body.read_to_string(&mut text).unwrap();
            assert_eq!(text, expected);
        }
        assert!(frames.read_body().unwrap().is_none());
    }
}

#[test]
fn truncated_body_is_an_error_at_every_byte() {
    let wire = frame("hello");
    for cut in 1..wire.len() {
        let mut frames = Framed::new(&wire[..cut], JsonHeader::default());
        let error = match frames.read_body() {
            Ok(body) => body.unwrap().read_to_end(&mut Vec::new()).unwrap_err(),
            Err(error) => error.into(),
        };
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(matches!(error.into(), FrameError::UnexpectedEnd));
    }
}

#[test]
fn errors_of_the_stream_lose_no_byte() {
    let wire = [frame("hello"), frame("world")].concat();
    let mut frames = Framed::new(
        Script::with_errors(&wire, ErrorKind::TimedOut),
        JsonHeader::default(),
    );
    let mut text = Vec::new();
    let mut errors = 0;
    'frames: loop {
        let mut body = match frames.read_body() {
            Ok(Some(body)) => body,
            Ok(None) => break 'frames,
            Err(FrameError::Io(_)) => {
                errors += 1;
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        while body.remaining() > 0 {
            errors += usize::from(body.read_to_end(&mut text).is_err());
        }
    }
    assert_eq!((&text[..], errors), (&b"helloworld"[..], wire.len()));
}

#[test]
fn unread_body_is_skipped() {
    let wire = [frame("hello"), frame("world"), frame("!")].concat();
    for size in 1..wire.len() {
        let stream = Script::parts(wire.chunks(size));
        let mut frames = Framed::new(stream, JsonHeader::default());
        frames
            .read_body()
            .unwrap()
            .unwrap()
            .read_exact(&mut [0; 2])
            .unwrap();
        assert_eq!(frames.read().unwrap().unwrap(), "world");
        let _ = frames.read_body().unwrap().unwrap();
        assert!(frames.read().unwrap().is_none());
    }
    // A truncated body is an error, also if it is skipped.
    let mut frames = Framed::new(&wire[..wire.len() - 1], JsonHeader::default());
    for _ in 0..3 {
        let _ = frames.read_body().unwrap().unwrap();
    }
    assert!(matches!(frames.read_body(), Err(FrameError::UnexpectedEnd)));
    assert!(frames.read_body().unwrap().is_none());
}

#[test]
fn body_can_be_read_in_parts_after_a_timeout() {
    let wire = frame("hello");
    let (begin, end) = wire.split_at(wire.len() - 2);
    let stream = Script::part_and_error(begin, ErrorKind::TimedOut);
    let mut frames = Framed::new(stream, JsonHeader::default());
    assert!(matches!(frames.read(), Err(FrameError::Io(_))));
    *frames.stream_mut() = Script::parts([end]);
    let mut text = String::new();
    frames
        .read_body()
        .unwrap()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn body_must_have_its_announced_length() {
    let mut frames = Framed::new(Vec::new(), JsonHeader::default().max_body(10));
    assert!(matches!(
        frames.write_body(11),
        Err(FrameError::Unsendable(_))
    ));
    assert!(frames.stream().is_empty());

    let mut body = frames.write_body(5).unwrap();
    body.write_all(b"hell").unwrap();
    assert_eq!(
        body.write(b"oo").unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let error = body.finish().unwrap_err();
    assert!(error.to_string().contains("1 bytes"), "{error}");
    for error in [
        frames.write("next").unwrap_err(),
        frames.write_body(0).unwrap_err(),
    ] {
        assert!(error.to_string().contains("1 bytes short"), "{error}");
    }
    assert!(frames.stream().ends_with(b"}hell"));
}

#[test]
fn no_frame_follows_a_partial_header() {
    let mut frames = Framed::new(LimitedWriter::default(), JsonHeader::default());
    assert!(matches!(frames.write_body(5), Err(FrameError::Io(_))));
    frames.stream_mut().capacity = usize::MAX;
    assert!(matches!(frames.write("x"), Err(FrameError::Unsendable(_))));
    // The peer has received a header, and takes the next bytes for the body.
    frames.flush().unwrap();
    assert!(matches!(frames.write("x"), Err(FrameError::Unsendable(_))));
    assert_eq!(frames.stream().taken, head(5));
}
