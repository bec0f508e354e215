//! A client that builds each frame by hand.

use std::time::Duration;

use socketserver::http::{Http, Request};
use socketserver::transport::Tcp;
use socketserver::websocket::{Handler, Message, WebSocket, WebSocketUpgrade};
use socketserver::{Concurrency, EndReason, Event, Result, Server, Timeouts};

use crate::common::client::Client;
use crate::common::running::Running;

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;
pub const FIN: u8 = 0x80;

pub const HANDSHAKE: &str = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

/// A frame of the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> &str {
        assert_eq!(self.opcode, TEXT, "{self:?}");
        std::str::from_utf8(&self.payload).unwrap()
    }
}

pub struct Peer(pub Client);

impl Peer {
    /// Opens a WebSocket.
    #[track_caller]
    pub fn open(running: &Running) -> Self {
        Self::open_with(running, &[])
    }

    /// Opens a WebSocket, with these bytes right behind the request.
    #[track_caller]
    pub fn open_with(running: &Running, more: &[u8]) -> Self {
        let mut peer = Self(running.client());
        peer.send(&[HANDSHAKE.as_bytes(), b"\r\n", more].concat());
        let head = peer.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        peer
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.send(bytes).unwrap();
    }

    /// Reads an answer up to its body.
    #[track_caller]
    pub fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.exactly(1));
        }
        String::from_utf8(head).unwrap()
    }

    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.send(&frame(FIN | TEXT, text.as_bytes()));
    }

    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        let head = self.exactly(2);
        assert_eq!(head[0] & 0xf0, FIN, "the server has sent a fragment");
        assert_eq!(head[1] & 0x80, 0, "the server has masked a frame");
        let length = match head[1] {
            126 => u64::from(u16::from_be_bytes(self.exactly(2).try_into().unwrap())),
            127 => u64::from_be_bytes(self.exactly(8).try_into().unwrap()),
            short => u64::from(short),
        };
        Frame {
            opcode: head[0] & 0x0f,
            payload: self.exactly(usize::try_from(length).unwrap()),
        }
    }

    /// Expects a close frame, and then the end of the connection. Returns the reason.
    #[track_caller]
    pub fn expect_close(mut self, code: u16) -> String {
        let reason = self.expect_close_frame(code);
        self.expect_end();
        reason
    }

    #[track_caller]
    pub fn expect_close_frame(&mut self, code: u16) -> String {
        let last = self.frame();
        assert_eq!(last.opcode, CLOSE, "{last:?}");
        let (number, reason) = last.payload.split_first_chunk().unwrap();
        let reason = std::str::from_utf8(reason).unwrap();
        assert_eq!(u16::from_be_bytes(*number), code, "{reason}");
        reason.to_owned()
    }

    #[track_caller]
    pub fn expect_end(self) {
        assert_eq!(self.0.read_rest().unwrap(), b"");
    }

    #[track_caller]
    fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            match self.0.read(&mut bytes[filled..]) {
                Ok(0) => panic!("end of input after {filled} of {count} bytes"),
                Ok(n) => filled += n,
                Err(error) => panic!("{error}, after {filled} of {count} bytes"),
            }
        }
        bytes
    }
}

/// Returns a masked frame, as a client must send it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = head(first, payload.len() as u64);
    frame[1] |= 0x80;
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
    frame
}

/// Returns the header of an unmasked frame.
pub fn head(first: u8, length: u64) -> Vec<u8> {
    match length {
        0..126 => vec![first, u8::try_from(length).unwrap()],
        126..65_536 => [
            &[first, 126][..],
            &u16::try_from(length).unwrap().to_be_bytes(),
        ]
        .concat(),
        _ => [&[first, 127][..], &length.to_be_bytes()].concat(),
    }
}

pub fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}

/// The configuration of a WebSocket server.
pub struct Setup<C> {
    pub model: C,
    pub sockets: WebSocketUpgrade,
    pub timeouts: Timeouts,
}

impl<C: Concurrency> Setup<C> {
    pub fn new(model: C) -> Self {
        Self {
            model,
            sockets: WebSocketUpgrade::new(),
            timeouts: Timeouts::default(),
        }
    }

    /// Starts a server that upgrades every request.
    pub fn serve<H: Handler>(
        self,
        make: impl Fn() -> H + Send + Sync + 'static,
    ) -> (Running, std::sync::mpsc::Receiver<EndReason>) {
        let (tx, ends) = std::sync::mpsc::channel();
        let sockets = self.sockets;
        let site = Http::new()
            .handler_fn(move |request: &mut Request<'_>| sockets.upgrade(request, make()));
        let server = Server::<Tcp, C>::builder()
            .concurrency(self.model)
            .timeouts(self.timeouts)
            .on_event(move |event| {
                if let Event::Ended(_, end) = event {
                    let _ = tx.send(end.reason);
                }
            })
            .bind("127.0.0.1:0", site);
        (Running::start(server.unwrap()), ends)
    }
}

/// Starts a server that sends back each message.
pub fn serve_echo<C: Concurrency>(model: C) -> Running {
    Setup::new(model).serve(|| echo).0
}

pub fn echo(socket: &mut WebSocket<'_>, message: Message) -> Result<()> {
    Ok(socket.send(message)?)
}

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
