//! What breaks the rules, and the code it ends with.

use socketserver::websocket::{WebSocketLimits, WebSocketUpgrade};
use socketserver::{Concurrency, EndReason};

use crate::common::PATIENCE;
use crate::common::random::Dice;
use crate::peer::{
    BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, Peer, Stage, TEXT, close, echo, frame, head,
    serve_echo,
};

/// A header of a masked frame, of which nothing more comes.
fn announced(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = head(first, length);
    bytes[1] |= 0x80;
    bytes.extend([0; 4]);
    bytes
}

fn each_fault_has_its_code<C: Concurrency>(model: C) {
    let (running, ends) = Stage::new(model).serve(|| echo);
    let unmasked = [head(FIN | TEXT, 2), b"hi".to_vec()].concat();
    let reserved = |bit: u8| frame(FIN | TEXT | bit, b"hi");
    for (what, bytes, code) in [
        ("a frame without a mask", unmasked, 1002),
        ("the first reserved bit", reserved(0x40), 1002),
        ("the second", reserved(0x20), 1002),
        ("the third", reserved(0x10), 1002),
        ("a kind of data that is none", frame(FIN | 3, b""), 1002),
        ("a kind of control that is none", frame(FIN | 11, b""), 1002),
        ("a ping in parts", frame(PING, b""), 1002),
        ("a close in parts", frame(CLOSE, b""), 1002),
        (
            "a ping that is too long",
            frame(FIN | PING, &[0; 126]),
            1002,
        ),
        (
            "a pong that is too long",
            announced(FIN | PONG, 1 << 40),
            1002,
        ),
        (
            "a rest without a beginning",
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
            "bad text in the first of its parts",
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
            announced(FIN | TEXT, (1 << 20) + 1),
            1009,
        ),
        (
            "one as long as can be said",
            announced(FIN | BINARY, u64::MAX),
            1009,
        ),
        (
            "parts that are too long together",
            [
                frame(BINARY, &[0; 1000]),
                announced(FIN | CONTINUATION, 1 << 20),
            ]
            .concat(),
            1009,
        ),
        ("half a number", frame(FIN | CLOSE, b"\x03"), 1002),
        ("a number for nobody", close(1005, b""), 1002),
        ("a number of nothing", close(0, b""), 1002),
        ("a number that is too high", close(5000, b""), 1002),
        ("a reason that is not UTF-8", close(1000, b"\xff"), 1007),
    ] {
        // After a message that is none of it.
        let mut peer = Peer::open(&running);
        peer.say("before");
        assert_eq!(peer.frame().text(), "before", "{what}");
        peer.send(&bytes);
        let reason = peer.ends_with(code);
        assert!(!reason.is_empty(), "{what}");
        let ended = ends.recv_timeout(PATIENCE).unwrap();
        assert_eq!(ended, EndReason::ProtocolError, "{what}");
    }
    // Nobody is told of them: they are no failures of the handler.
    let counters = running.handle.counters();
    assert_eq!(
        (counters.failed, counters.completed, counters.protocol_error),
        (0, 0, counters.ended)
    );
}

fn limits_are_those_that_were_set<C: Concurrency>(model: C) {
    let mut stage = Stage::new(model);
    let limits = WebSocketLimits::default().message(10).frame(6).frames(4);
    stage.sockets = WebSocketUpgrade::new().limits(limits);
    let running = stage.serve(|| echo).0;
    let part = |fin, bytes: &[u8]| frame(fin | CONTINUATION, bytes);
    let mut peer = Peer::open(&running);
    peer.send(&[frame(BINARY, b"123456"), part(FIN, b"7890")].concat());
    assert_eq!(peer.frame().payload, b"1234567890");
    // Four frames, one of which is another's.
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
        peer.ends_with(code);
    }
}

/// Whatever is sent, the server is there afterwards, and has not panicked.
fn nothing_that_is_sent_harms_the_server<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let mut dice = Dice::new(0x5eed);
    for _ in 0..200 {
        let mut peer = Peer::open(&running);
        let mut bytes = Vec::new();
        for _ in 0..dice.below(6) {
            let first = dice.byte() & if dice.below(2) == 0 { 0x8f } else { 0xff };
            let payload: Vec<u8> = (0..dice.below(200)).map(|_| dice.byte()).collect();
            bytes.extend(frame(first, &payload));
        }
        if !bytes.is_empty() && dice.below(3) == 0 {
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
        }
        // It may be closed by the time.
        let _ = peer.0.send(&bytes);
        let _ = peer.0.half_close();
        let _ = peer.0.rest();
    }
    let mut peer = Peer::open(&running);
    peer.say("still here");
    assert_eq!(peer.frame().text(), "still here");
    assert_eq!(running.handle.counters().panicked, 0);
}

crate::common::under_each_model! {
    each_fault_has_its_code
    limits_are_those_that_were_set
    nothing_that_is_sent_harms_the_server
}
