//! Decoder of WebSocket messages. tungstenite interprets frames and their order. This module
//! collects the bytes of a frame, so that memory is allocated for received bytes only. It rejects a
//! bad frame as soon as its header has arrived.

use std::io::{self, BufRead, Cursor, Read, Write};

use bytes::Bytes;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, OpCode};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message as Decoded};

use super::WebSocketLimits;
use super::message::{CloseCode, CloseFrame, Message};
use crate::Connection;

/// RFC 6455, 5.5.
const LONGEST_CONTROL: u64 = 125;

pub(super) struct Decoder {
    limits: WebSocketLimits,
    /// Bytes of the current frame.
    bytes: Vec<u8>,
    /// State of the current message. Its buffers are as long as the longest frame, so it is dropped
    /// after the message.
    context: Option<Box<WebSocketContext>>,
    /// True if a message has begun and is not complete.
    is_within: bool,
    /// Number of frames since the message began, and number of its bytes.
    frames: usize,
    gathered: u64,
}

/// A message or control frame of the client.
#[derive(Debug)]
pub(super) enum Incoming {
    Message(Message),
    Ping(Bytes),
    Pong,
    Close(Option<CloseFrame>),
}

/// An error that ends reading.
#[derive(Debug)]
pub(super) enum DecodeError {
    Io(io::Error),
    /// A protocol violation by the client; the close frame is the reply.
    Violation(CloseFrame),
}

impl Decoder {
    pub fn new(limits: WebSocketLimits) -> Self {
        Self {
            limits,
            bytes: Vec::new(),
            context: None,
            is_within: false,
            frames: 0,
            gathered: 0,
        }
    }

    /// Returns true if a message has begun and is not complete.
    pub fn is_within(&self) -> bool {
        self.is_within
    }

    /// Reads until a message or control frame is complete. Returns `None` at the end of input. From
    /// its first byte on, a message must arrive at the connection's receive rate.
    pub fn read(&mut self, conn: &mut Connection) -> Result<Option<Incoming>, DecodeError> {
        loop {
            let Some(header) = self.frame(conn)? else {
                return Ok(None);
            };
            if let OpCode::Data(_) = header.opcode {
                self.is_within = !header.is_final;
            }
            if header.opcode == OpCode::Control(Control::Close) {
                conn.end_message();
                let payload = self.unmasked(&header);
                return closing(&payload).map(|close| Some(Incoming::Close(close)));
            }
            let decoded = self.decode();
            self.bytes = Vec::new();
            if !self.is_within {
                conn.end_message();
                self.context = None;
                (self.frames, self.gathered) = (0, 0);
            }
            match decoded {
                Ok(Decoded::Text(text)) => {
                    return Ok(Some(Incoming::Message(Message::Text(text.as_str().into()))));
                }
                Ok(Decoded::Binary(bytes)) => {
                    return Ok(Some(Incoming::Message(Message::Binary(bytes))));
                }
                Ok(Decoded::Ping(bytes)) => return Ok(Some(Incoming::Ping(bytes))),
                Ok(Decoded::Pong(_)) => return Ok(Some(Incoming::Pong)),
                // Close frames are handled above, and reading creates no raw frames.
                Ok(Decoded::Close(_) | Decoded::Frame(_)) => {}
                // A fragment of a message.
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Decodes the collected frame.
    fn decode(&mut self) -> Result<Decoded, Error> {
        let WebSocketLimits { message, frame, .. } = self.limits;
        let length = self.bytes.len();
        let context = self.context.get_or_insert_with(|| {
            let config = WebSocketConfig::default()
                .read_buffer_size(length.min(READ))
                .max_message_size(Some(message))
                .max_frame_size(Some(frame));
            Box::new(WebSocketContext::new(Role::Server, Some(config)))
        });
        context.read(&mut FrameReader(&self.bytes))
    }

    /// Returns the unmasked payload of the collected frame.
    fn unmasked(&self, header: &FrameHeader) -> Vec<u8> {
        let payload = &self.bytes[header_length(&self.bytes)..];
        let mask = header.mask.unwrap_or_default();
        let pairs = payload.iter().zip(mask.iter().cycle());
        pairs.map(|(byte, key)| byte ^ key).collect()
    }

    /// Collects the next frame. Returns `None` at the end of input.
    fn frame(&mut self, conn: &mut Connection) -> Result<Option<FrameHeader>, DecodeError> {
        loop {
            let mut cursor = Cursor::new(&self.bytes[..]);
            let Some((header, length)) = FrameHeader::parse(&mut cursor)? else {
                let missing = header_length(&self.bytes) - self.bytes.len();
                match self.take(conn, missing)? {
                    true => continue,
                    false => return Ok(None),
                }
            };
            let begin = header_length(&self.bytes);
            let end = begin.saturating_add(self.check(&header, length)?);
            while self.bytes.len() < end {
                if !self.take(conn, end - self.bytes.len())? {
                    return Ok(None);
                }
            }
            return Ok(Some(header));
        }
    }

    /// Rejects a frame that its header already shows to be invalid; tungstenite finds all other
    /// errors. Returns the payload length.
    fn check(&mut self, header: &FrameHeader, length: u64) -> Result<usize, DecodeError> {
        let bad = |why: &str| {
            Err(DecodeError::Violation(CloseFrame::new(
                CloseCode::PROTOCOL_ERROR,
                why,
            )))
        };
        let too_big = |why: &str| {
            Err(DecodeError::Violation(CloseFrame::new(
                CloseCode::TOO_BIG,
                why,
            )))
        };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return bad("reserved bits are set");
        }
        if header.mask.is_none() {
            return bad("the frame is not masked");
        }
        self.frames += 1;
        if self.frames > self.limits.frames {
            let why = "the message has too many frames";
            return Err(DecodeError::Violation(CloseFrame::new(
                CloseCode::POLICY,
                why,
            )));
        }
        match header.opcode {
            OpCode::Control(_) if !header.is_final => bad("a control frame is in parts"),
            OpCode::Control(_) if length > LONGEST_CONTROL => bad("a control frame is too long"),
            OpCode::Control(_) => Ok(usize::try_from(length).unwrap_or(usize::MAX)),
            OpCode::Data(_) => {
                self.gathered = self.gathered.saturating_add(length);
                if length > self.limits.frame as u64 {
                    return too_big("the frame is too long");
                }
                if self.gathered > self.limits.message as u64 {
                    return too_big("the message is too long");
                }
                Ok(usize::try_from(length).unwrap_or(usize::MAX))
            }
        }
    }

    /// Appends up to `most` received bytes to the frame. Returns true if there were any.
    fn take(&mut self, conn: &mut Connection, most: usize) -> Result<bool, DecodeError> {
        let some = conn.fill_buf().map_err(DecodeError::Io)?;
        let n = some.len().min(most);
        self.bytes.extend_from_slice(&some[..n]);
        conn.consume(n);
        conn.begin_message();
        Ok(n > 0)
    }
}

/// Parses the payload of a close frame (RFC 6455, 5.5.1). tungstenite does not know all codes that
/// IANA has registered.
fn closing(payload: &[u8]) -> Result<Option<CloseFrame>, DecodeError> {
    let bad = |code, why: &str| Err(DecodeError::Violation(CloseFrame::new(code, why)));
    let Some((number, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(None),
            _ => bad(CloseCode::PROTOCOL_ERROR, "the close code is cut off"),
        };
    };
    let Some(code) = CloseCode::new(u16::from_be_bytes(*number)) else {
        let why = "the close code is none that a frame may have";
        return bad(CloseCode::PROTOCOL_ERROR, why);
    };
    match std::str::from_utf8(reason) {
        Ok(reason) => Ok(Some(CloseFrame::new(code, reason))),
        Err(_) => bad(CloseCode::INVALID, "the reason is not UTF-8"),
    }
}

/// Maximum number of bytes that tungstenite reads at a time.
const READ: usize = 16 << 10;

/// Presents the collected frame to tungstenite as a stream. Replies that tungstenite writes are
/// discarded, because [`Sender`](super::Sender) replies.
struct FrameReader<'a>(&'a [u8]);

impl Read for FrameReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }
}

impl Write for FrameReader<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the length of a frame header, as far as its first bytes show (RFC 6455, 5.2).
fn header_length(bytes: &[u8]) -> usize {
    let Some(second) = bytes.get(1) else {
        return 2;
    };
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    2 + extended + mask
}

impl From<Error> for DecodeError {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Utf8(_) => CloseCode::INVALID,
            Error::Capacity(_) => CloseCode::TOO_BIG,
            _ => CloseCode::PROTOCOL_ERROR,
        };
        let why = match error {
            // tungstenite's message quotes the client's bytes.
            Error::Utf8(_) => "the text is not UTF-8".into(),
            Error::Protocol(error) => error.to_string(),
            error => error.to_string(),
        };
        Self::Violation(CloseFrame::new(code, why))
    }
}
