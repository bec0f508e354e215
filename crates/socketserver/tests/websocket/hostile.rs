//! Protocol errors, and their close codes.

use socketserver::websocket::{WebSocketLimits, WebSocketUpgrade};
use socketserver::{Concurrency, EndReason};

use crate::common::TIMEOUT;
use crate::common::random::Rng;
use crate::peer::{
    BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, Peer, Setup, TEXT, close, echo, frame, head,
    serve_echo,
};

/// Returns the header of a masked frame without its payload.
fn header_only(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = head(first, length);
    bytes[1] |= 0x80;
    bytes.extend([0; 4]);
    bytes
}

fn each_protocol_error_has_its_close_code<C: Concurrency>(model: C) {
    let (running, ends) = Setup::new(model).serve(|| echo);
    let unmasked = [head(FIN | TEXT, 2), b"hi".to_vec()].concat();
    let reserved = |bit: u8| frame(FIN | TEXT | bit, b"hi");
    for (what, bytes, code) in [
        ("a frame without a mask", unmasked, 1002),
        ("the first reserved bit", reserved(0x40), 1002),
        ("the second", reserved(0x20), 1002),
        ("the third", reserved(0x10), 1002),
        ("an unknown data opcode", frame(FIN | 3, b""), 1002),
        ("an unknown control opcode", frame(FIN | 11, b""), 1002),
        ("a fragmented ping", frame(PING, b""), 1002),
        ("a fragmented close", frame(CLOSE, b""), 1002),
        (
            "a ping that is too long",
            frame(FIN | PING, &[0; 126]),
            1002,
        ),
        (
            "a pong that is too long",
            header_only(FIN | PONG, 1 << 40),
            1002,
        ),
        (
            "a continuation without a first frame",
            frame(FIN | CONTINUATION, b"x"),
            1002,
        ),
        (
            "a message within another",
            [frame(TEXT, b"a"), frame(FIN | TEXT, b"b")].concat(),
            1002,
        ),
        ("text that is not UTF-8", frame(FIN | TEXT, b"\xff"), 1007),
        ("a surrogate", frame(FIN | TEXT, b"\xed\xa0\x80"), 1007),
        ("half a character", frame(FIN | TEXT, b"\xc3"), 1007),
        (
            "invalid text in the first fragment",
            frame(TEXT, b"a\xff"),
            1007,
        ),
        (
            "a character that is never complete",
            [frame(TEXT, b"\xc3"), frame(FIN | CONTINUATION, b"")].concat(),
            1007,
        ),
        (
            "a frame that is too long",
            header_only(FIN | TEXT, (1 << 20) + 1),
            1009,
        ),
        (
            "a frame of the maximum length",
            header_only(FIN | BINARY, u64::MAX),
            1009,
        ),
        (
            "fragments that are too long together",
            [
                frame(BINARY, &[0; 1000]),
                header_only(FIN | CONTINUATION, 1 << 20),
            ]
            .concat(),
            1009,
        ),
        ("half a close code", frame(FIN | CLOSE, b"\x03"), 1002),
        ("a reserved close code", close(1005, b""), 1002),
        ("the close code 0", close(0, b""), 1002),
        ("a close code that is too high", close(5000, b""), 1002),
        ("a reason that is not UTF-8", close(1000, b"\xff"), 1007),
    ] {
        // After a valid message.
        let mut peer = Peer::open(&running);
        peer.send_text("before");
        assert_eq!(peer.frame().text(), "before", "{what}");
        peer.send(&bytes);
        let reason = peer.expect_close(code);
        assert!(!reason.is_empty(), "{what}");
        let ended = ends.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(ended, EndReason::ProtocolError, "{what}");
    }
    // Protocol errors are not failures of the handler.
    let counters = running.handle.counters();
    assert_eq!(
        (counters.failed, counters.completed, counters.protocol_error),
        (0, 0, counters.ended)
    );
}

fn configured_limits_apply<C: Concurrency>(model: C) {
    let mut setup = Setup::new(model);
    let limits = WebSocketLimits::default().message(10).frame(6).frames(4);
    setup.sockets = WebSocketUpgrade::new().limits(limits);
    let running = setup.serve(|| echo).0;
    let part = |fin, bytes: &[u8]| frame(fin | CONTINUATION, bytes);
    let mut peer = Peer::open(&running);
    peer.send(&[frame(BINARY, b"123456"), part(FIN, b"7890")].concat());
    assert_eq!(peer.frame().payload, b"1234567890");
    // Four frames, one of which belongs to no message.
    let four = [
        frame(BINARY, b""),
        frame(FIN | PONG, b""),
        part(0, b""),
        part(FIN, b"!"),
    ];
    for _ in 0..3 {
        peer.send(&four.concat());
        assert_eq!(peer.frame().payload, b"!");
    }
    for (bytes, code) in [
        (frame(FIN | BINARY, b"1234567"), 1009),
        (
            [frame(BINARY, b"123456"), part(FIN, b"78901")].concat(),
            1009,
        ),
        (
            [frame(BINARY, b""), part(0, b"").repeat(3), part(FIN, b"")].concat(),
            1008,
        ),
        (
            [frame(BINARY, b""), frame(FIN | PONG, b"").repeat(4)].concat(),
            1008,
        ),
    ] {
        let mut peer = Peer::open(&running);
        peer.send(&bytes);
        peer.expect_close(code);
    }
}

/// Arbitrary bytes neither stop the server nor cause a panic.
fn arbitrary_bytes_do_not_harm_the_server<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let mut rng = Rng::new(0x5eed);
    for _ in 0..200 {
        let mut peer = Peer::open(&running);
        let mut bytes = Vec::new();
        for _ in 0..rng.below(6) {
            let first = rng.byte() & if rng.below(2) == 0 { 0x8f } else { 0xff };
            let payload: Vec<u8> = (0..rng.below(200)).map(|_| rng.byte()).collect();
            bytes.extend(frame(first, &payload));
        }
        if !bytes.is_empty() && rng.below(3) == 0 {
            let at = rng.below(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
        }
        // The server may have closed the connection already.
        let _ = peer.0.send(&bytes);
        let _ = peer.0.half_close();
        let _ = peer.0.read_rest();
    }
    let mut peer = Peer::open(&running);
    peer.send_text("still here");
    assert_eq!(peer.frame().text(), "still here");
    assert_eq!(running.handle.counters().panicked, 0);
}

crate::common::under_each_model! {
    each_protocol_error_has_its_close_code
    configured_limits_apply
    arbitrary_bytes_do_not_harm_the_server
}
