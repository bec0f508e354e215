//! Messages of all sizes and in all parts; pings; several senders.

use std::net::TcpStream;
use std::thread;

use socketserver::websocket::{Handler, Message, WebSocket};
use socketserver::{Concurrency, Result};

use crate::common::client::Endpoint;
use crate::common::{TIMEOUT, eventually};
use crate::peer::{
    BINARY, CONTINUATION, FIN, PING, PONG, Peer, Setup, TEXT, frame, head, serve_echo,
};

fn messages_of_any_length_are_echoed<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let mut peer = Peer::open(&running);
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20] {
        let bytes: Vec<u8> = (0..length).map(|n: usize| n.to_le_bytes()[0]).collect();
        peer.send(&frame(FIN | BINARY, &bytes));
        let back = peer.frame();
        assert_eq!((back.opcode, back.payload.len()), (BINARY, length));
        assert!(back.payload == bytes);
        peer.send_text(&"x".repeat(length));
        assert_eq!(peer.frame().text().len(), length);
    }
}

fn fragments_are_joined<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let all = [
        frame(FIN | TEXT, "grüße".as_bytes()),
        // In three frames, split within a character, with a ping between them.
        frame(TEXT, b"gr\xc3"),
        frame(FIN | PING, b"?"),
        frame(CONTINUATION, b"\xbc\xc3"),
        frame(CONTINUATION, b""),
        frame(FIN | CONTINUATION, b"\x9fe"),
        frame(BINARY, b""),
        frame(FIN | CONTINUATION, b"end"),
    ]
    .concat();
    let expected = [
        (TEXT, "grüße"),
        (PONG, "?"),
        (TEXT, "grüße"),
        (BINARY, "end"),
    ];
    let expected = expected.map(|(opcode, text)| (opcode, text.to_owned()));
    // In one write, and byte by byte.
    let mut one = Peer::open(&running);
    one.send(&all);
    let mut two = Peer::open(&running);
    for byte in &all {
        two.send(&[*byte]);
    }
    for mut peer in [one, two] {
        let received: Vec<_> = (0..4)
            .map(|_| peer.frame())
            .map(|frame| (frame.opcode, String::from_utf8(frame.payload).unwrap()))
            .collect();
        assert_eq!(received, expected);
    }
}

fn ping_is_answered_and_pong_is_not<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let mut peer = Peer::open(&running);
    for payload in [&b""[..], b"abc", &[0xff; 125]] {
        peer.send(&frame(FIN | PONG, b"unsolicited"));
        peer.send(&frame(FIN | PING, payload));
        let answer = peer.frame();
        assert_eq!((answer.opcode, &answer.payload[..]), (PONG, payload));
    }
    // Between messages the connection does not occupy a worker, also after a ping.
    eventually(TIMEOUT, "the connection to be suspended", || {
        running.handle.waiting_count() == 1
    });
}

/// An independent client.
fn independent_client_is_served<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let Endpoint::Tcp(address) = running.endpoint else {
        unreachable!("the transport is TCP");
    };
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let url = format!("ws://{address}/");
    let (mut client, _) = tungstenite::client(url, stream).unwrap();
    for text in ["", "hello", &"long".repeat(50_000)] {
        client.send(tungstenite::Message::text(text)).unwrap();
        assert_eq!(client.read().unwrap(), tungstenite::Message::text(text));
    }
    client.send(tungstenite::Message::Ping("?".into())).unwrap();
    assert_eq!(
        client.read().unwrap(),
        tungstenite::Message::Pong("?".into())
    );
    client.close(None).unwrap();
    let last = client.read().unwrap();
    assert!(
        matches!(last, tungstenite::Message::Close(None)),
        "{last:?}"
    );
    let end = client.read().unwrap_err();
    assert!(matches!(end, tungstenite::Error::ConnectionClosed), "{end}");
}

/// Frames of several threads and pongs are never mixed, and no message is lost, although the
/// messages exceed the buffers.
fn messages_of_several_senders_are_not_mixed<C: Concurrency>(model: C) {
    const SENDERS: usize = 4;
    const EACH: usize = 10;
    fn text_of(number: usize, n: usize) -> String {
        format!("{number} {n} ").repeat(150_000)
    }
    struct Many;
    impl Handler for Many {
        fn opened(&mut self, socket: &mut WebSocket<'_>) -> Result<()> {
            for number in 0..SENDERS {
                let sender = socket.sender();
                thread::spawn(move || {
                    for n in 0..EACH {
                        sender.send(text_of(number, n)).unwrap();
                    }
                });
            }
            Ok(())
        }
        fn message(&mut self, _: &mut WebSocket<'_>, _: Message) -> Result<()> {
            Ok(())
        }
    }
    let running = Setup::new(model).serve(|| Many).0;
    let mut peer = Peer::open(&running);
    let received = || running.handle.active()[0].received;
    let before = received();
    // The ping arrives while the senders wait for buffer space. The current sender answers it.
    eventually(TIMEOUT, "the senders to begin", || {
        running.handle.active()[0].sent > 100_000
    });
    let ping = frame(FIN | PING, b"interleaved");
    peer.send(&ping);
    eventually(TIMEOUT, "the ping to be received", || {
        received() == before + ping.len() as u64
    });
    let mut next = [0; SENDERS];
    let mut pongs = 0;
    while pongs == 0 || next != [EACH; SENDERS] {
        let frame = peer.frame();
        if frame.opcode == PONG {
            assert_eq!(frame.payload, b"interleaved");
            pongs += 1;
            continue;
        }
        let text = frame.text();
        let mut numbers = text.split(' ').map(|word| word.parse().unwrap());
        let (number, n) = (numbers.next().unwrap(), numbers.next().unwrap());
        assert!(
            text == text_of(number, n),
            "frames of several senders are mixed"
        );
        assert_eq!(n, next[number]);
        next[number] += 1;
    }
    assert_eq!(pongs, 1);
}

/// Neither memory nor a slot is held for announced bytes.
fn incomplete_frame_ends_with_its_client<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let mut peer = Peer::open(&running);
    let mut begin = head(FIN | BINARY, 1 << 20);
    begin[1] |= 0x80;
    peer.send(&begin);
    peer.send(&[0; 100]);
    peer.0.half_close().unwrap();
    // The client has sent its end of input; the server closes with 1001.
    assert_eq!(peer.expect_close(1001), "");
}

crate::common::under_each_model! {
    messages_of_any_length_are_echoed
    fragments_are_joined
    ping_is_answered_and_pong_is_not
    independent_client_is_served
    messages_of_several_senders_are_not_mixed
    incomplete_frame_ends_with_its_client
}
