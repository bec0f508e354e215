//! Encoder of WebSocket messages, shared by several threads. Frames are sent whole, one after the
//! other.

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
/// Each send has the time limits that the connection had when this handle was created. After the
/// WebSocket begins to close, a send fails with [`io::ErrorKind::BrokenPipe`]. Drop the handle
/// then, because it keeps the descriptor open.
#[derive(Clone)]
pub struct Sender {
    shared: Arc<Shared>,
    writer: WriteHalf,
}

#[derive(Default)]
struct Shared {
    send_lock: SendLock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Payload of the pong to send. A later ping supersedes an earlier ping (RFC 6455, 5.5.3).
    pong: Option<Bytes>,
    ping: bool,
    /// True if nothing can be sent any more: a close frame or only part of a frame was sent.
    is_closed: bool,
}

impl Sender {
    pub(super) fn new(writer: WriteHalf) -> Self {
        Self {
            shared: Arc::default(),
            writer,
        }
    }

    /// Returns a sender of the same WebSocket with the limits of `writer`.
    pub(super) fn with(&self, writer: WriteHalf) -> Self {
        Self {
            shared: self.shared.clone(),
            writer,
        }
    }

    /// Sends a message. Waits while another thread sends a message.
    ///
    /// # Errors
    /// Returns the errors of a write. After an error within a frame, the connection is unusable.
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

    /// Answers a ping, now or after the current message.
    pub(super) fn pong(&self, payload: Bytes) -> io::Result<()> {
        self.state().pong = Some(payload);
        self.flush_control()
    }

    /// Sends a ping.
    pub(super) fn ping(&self) -> io::Result<()> {
        self.state().ping = true;
        self.flush_control()
    }

    /// Sends the close frame within `time`.
    pub(super) fn close(&self, close: Option<&CloseFrame>, time: Duration) -> io::Result<()> {
        let last = self.writer.until(Instant::now().checked_add(time));
        let frame = Frame::close(close.map(|close| RawCloseFrame {
            code: close.code.as_u16().into(),
            reason: close.reason.as_str().into(),
        }));
        let mut bytes = Vec::new();
        // Writing to a vector cannot fail.
        let _ = frame.format(&mut bytes);
        let last = self.with(last);
        let guard = last.lock()?;
        last.check()?;
        let sent = last.write(&mut [IoSlice::new(&bytes)], &mut || {});
        self.state().is_closed = true;
        drop(guard);
        sent
    }

    /// Sends whole frames.
    fn send_frames(
        &self,
        slices: &mut [IoSlice<'_>],
        progress: &mut dyn FnMut(),
    ) -> io::Result<()> {
        let guard = self.lock()?;
        self.check()?;
        self.write(slices, progress)?;
        drop(guard);
        self.flush_control()
    }

    /// Sends pending pings and pongs if no other thread is sending. Otherwise the sending thread
    /// does so after its message, so that reads do not wait for writes.
    fn flush_control(&self) -> io::Result<()> {
        while self.has_control() {
            let Some(_guard) = self.shared.send_lock.try_take() else {
                return Ok(());
            };
            let (pong, ping) = {
                let mut state = self.state();
                (state.pong.take(), mem::take(&mut state.ping))
            };
            if self.check().is_err() {
                // The WebSocket is closed, so the client expects no answer.
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

    fn lock(&self) -> io::Result<SendGuard<'_>> {
        self.shared.send_lock.take(self.writer.deadline())
    }

    fn check(&self) -> io::Result<()> {
        if self.state().is_closed {
            let why = "the WebSocket is closed: no message can follow the close frame";
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, why));
        }
        Ok(())
    }

    /// Writes the slices completely. The caller holds the send lock.
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
                    // Part of a frame was sent: the client would take further bytes for the rest of
                    // it.
                    self.state().is_closed = true;
                    return Err(error);
                }
            }
            progress();
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Held briefly; no application code runs under the lock.
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends room messages: as text if they are valid UTF-8, as binary otherwise.
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

/// Returns the header of a message that consists of one frame.
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
