//! From messages to bytes, by several at once: frames come whole and one after the other, whoever
//! sends them.

use std::fmt;
use std::io::{self, IoSlice};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tungstenite::protocol::CloseFrame as RawCloseFrame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

use super::message::{CloseFrame, Message};
use crate::connection::WriteHalf;
use crate::room::MessageSink;
use crate::send_lock::{SendGuard, SendLock};
use crate::socket::Socket;

/// Sends messages to the client of a WebSocket, from any thread. Cheap to clone.
///
/// Each send is bounded as the connection's own were when this was made. Once the WebSocket is being
/// closed it fails with [`io::ErrorKind::BrokenPipe`]; drop it then, as it keeps the descriptor open.
#[derive(Clone)]
pub struct Sender {
    shared: Arc<Shared>,
    writer: WriteHalf,
}

#[derive(Default)]
struct Shared {
    turn: SendLock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What a ping asks for. A later one supersedes an earlier one (RFC 6455, 5.5.3).
    pong: Option<Bytes>,
    ping: bool,
    /// Nothing is sent any more: the last frame was, or one was sent in part.
    is_over: bool,
}

impl Sender {
    pub(super) fn new(writer: WriteHalf) -> Self {
        Self {
            shared: Arc::default(),
            writer,
        }
    }

    /// The same with limits of now.
    pub(super) fn with(&self, writer: WriteHalf) -> Self {
        Self {
            shared: self.shared.clone(),
            writer,
        }
    }

    /// Sends a message. It waits while another one is being sent.
    ///
    /// # Errors
    /// Those of a write. After one that was within a frame the connection is of no use.
    pub fn send(&self, message: impl Into<Message>) -> io::Result<()> {
        let message = message.into();
        let (kind, bytes) = match &message {
            Message::Text(text) => (Data::Text, text.as_bytes()),
            Message::Binary(bytes) => (Data::Binary, &bytes[..]),
        };
        let header = header(kind, bytes.len());
        let mut slices = [IoSlice::new(&header), IoSlice::new(bytes)];
        self.send_frames(&mut slices, &mut || {})
    }

    /// Answers a ping, now or after what is being sent.
    pub(super) fn pong(&self, payload: Bytes) -> io::Result<()> {
        self.state().pong = Some(payload);
        self.flush_beside()
    }

    /// Asks whether the client is there.
    pub(super) fn ping(&self) -> io::Result<()> {
        self.state().ping = true;
        self.flush_beside()
    }

    /// Sends the last frame, and has that take no longer than this.
    pub(super) fn close(&self, close: Option<&CloseFrame>, time: Duration) -> io::Result<()> {
        let last = self.writer.until(Instant::now().checked_add(time));
        let frame = Frame::close(close.map(|close| RawCloseFrame {
            code: close.code.as_u16().into(),
            reason: close.reason.as_str().into(),
        }));
        let mut bytes = Vec::new();
        // It fails where a vector does.
        let _ = frame.format(&mut bytes);
        let last = self.with(last);
        let turn = last.turn()?;
        last.check()?;
        let sent = last.write(&mut [IoSlice::new(&bytes)], &mut || {});
        self.state().is_over = true;
        drop(turn);
        sent
    }

    /// Sends whole frames.
    fn send_frames(
        &self,
        slices: &mut [IoSlice<'_>],
        progress: &mut dyn FnMut(),
    ) -> io::Result<()> {
        let turn = self.turn()?;
        self.check()?;
        self.write(slices, progress)?;
        drop(turn);
        self.flush_beside()
    }

    /// Sends what the protocol has to say by itself, if it is nobody's turn. If it is somebody's, he
    /// does this afterwards: what is read does not wait for what is written.
    fn flush_beside(&self) -> io::Result<()> {
        while self.has_control() {
            let Some(_turn) = self.shared.turn.try_take() else {
                return Ok(());
            };
            let (pong, ping) = {
                let mut state = self.state();
                (state.pong.take(), mem::take(&mut state.ping))
            };
            if self.check().is_err() {
                // Nobody waits for an answer any more.
                return Ok(());
            }
            let mut bytes = Vec::new();
            let frames = [
                pong.map(Frame::pong),
                ping.then(|| Frame::ping(Bytes::new())),
            ];
            for frame in frames.into_iter().flatten() {
                let _ = frame.format(&mut bytes);
            }
            self.write(&mut [IoSlice::new(&bytes)], &mut || {})?;
        }
        Ok(())
    }

    fn has_control(&self) -> bool {
        let state = self.state();
        state.pong.is_some() || state.ping
    }

    fn turn(&self) -> io::Result<SendGuard<'_>> {
        self.shared.turn.take(self.writer.deadline())
    }

    fn check(&self) -> io::Result<()> {
        if self.state().is_over {
            let why = "the WebSocket is closed, and nothing can follow that";
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, why));
        }
        Ok(())
    }

    /// To be called by who has the turn.
    fn write(&self, slices: &mut [IoSlice<'_>], progress: &mut dyn FnMut()) -> io::Result<()> {
        let mut rest = slices;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let written = match self.writer.send(rest) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                written => written,
            };
            match written {
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(error) => {
                    // A frame in part: whatever follows would be taken for the rest of it.
                    self.state().is_over = true;
                    return Err(error);
                }
            }
            progress();
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Held for moments, and no application code runs under it.
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way of a room's messages: as text where they are, as bytes otherwise.
impl MessageSink for Sender {
    fn socket(&self) -> &Socket {
        self.writer.socket()
    }

    fn write(&self, batch: &[Arc<[u8]>], progress: &mut dyn FnMut()) -> io::Result<()> {
        let headers: Vec<_> = batch
            .iter()
            .map(|message| match std::str::from_utf8(message) {
                Ok(_) => header(Data::Text, message.len()),
                Err(_) => header(Data::Binary, message.len()),
            })
            .collect();
        let frames = headers.iter().zip(batch);
        let mut slices: Vec<_> = frames
            .flat_map(|(header, message)| [IoSlice::new(header), IoSlice::new(message)])
            .collect();
        self.send_frames(&mut slices, progress)
    }
}

/// What comes before the bytes of a message that is one frame.
fn header(kind: Data, length: usize) -> Vec<u8> {
    let header = FrameHeader {
        opcode: OpCode::Data(kind),
        ..FrameHeader::default()
    };
    let mut bytes = Vec::with_capacity(10);
    let _ = header.format(length as u64, &mut bytes);
    bytes
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.writer).finish()
    }
}
