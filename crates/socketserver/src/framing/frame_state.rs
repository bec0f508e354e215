//! The state of both directions of a stream of frames, without the stream itself.

use std::io::{self, Read, Write};

use bytes::BytesMut;

use super::buffer::{Buffer, CHUNK};
use super::{Decoder, FrameError};
use crate::park::give_way;

#[derive(Default)]
pub(super) struct FrameState {
    input: Buffer,
    /// The frame that is being sent, and the number of its bytes that were sent.
    output: BytesMut,
    sent: usize,
    stage: Stage,
    /// True after a part of a message was read, until the message is complete.
    has_begun: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Reading,
    /// The peer has closed the stream; the decoder may return further messages.
    Eof,
    /// No further messages are decoded.
    Finished,
}

impl FrameState {
    pub fn with_unread(unread: BytesMut) -> Self {
        let mut state = Self::default();
        state.input.data = unread;
        state
    }

    /// Reads until a message is complete. Calls `on_progress` with true before each wait for the
    /// rest of a message, and with false when the message is complete.
    pub fn read<S: Read, D: Decoder>(
        &mut self,
        stream: &mut S,
        decoder: &mut D,
        on_progress: fn(&mut S, bool),
    ) -> Result<Option<D::Item>, D::Error> {
        let mut has_read = false;
        loop {
            let decoded = self.decode(decoder);
            if !has_read && matches!(decoded, Ok(Some(_))) {
                // The message was already buffered, so this call has not waited and other requests
                // have not run.
                give_way();
            }
            if !matches!(decoded, Ok(None)) || self.stage == Stage::Finished {
                self.has_begun = false;
                on_progress(stream, false);
                return decoded;
            }
            // The decoder may hold the beginning of the message itself.
            self.has_begun |= !self.input.data.is_empty();
            if self.has_begun {
                on_progress(stream, true);
            }
            has_read = true;
            match self.input.fill(stream, decoder.buffer_limit())? {
                0 => self.stage = Stage::Eof,
                _ => self.has_begun = true,
            }
        }
    }

    /// Decodes the next message if it is completely buffered.
    pub fn decode<D: Decoder>(&mut self, decoder: &mut D) -> Result<Option<D::Item>, D::Error> {
        let data = &mut self.input.data;
        let decoded = match self.stage {
            Stage::Reading => decoder.decode(data),
            Stage::Eof => decoder.decode_eof(data),
            Stage::Finished => return Ok(None),
        };
        match &decoded {
            Ok(Some(_)) => {}
            Ok(None) if self.stage == Stage::Eof => self.stage = Stage::Finished,
            Ok(None) if data.len() < decoder.buffer_limit() => {}
            Ok(None) => {
                self.stage = Stage::Finished;
                let error = FrameError::TooLong {
                    limit: decoder.buffer_limit() as u64,
                    claimed: data.len() as u64,
                };
                return Err(io::Error::from(error).into());
            }
            Err(error) if decoder.is_recoverable(error) => {}
            Err(_) => self.stage = Stage::Finished,
        }
        decoded
    }

    /// Sends the bytes that `encode` appends. If `encode` fails, nothing is sent.
    pub fn write<E: From<io::Error>>(
        &mut self,
        stream: &mut impl Write,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.output.is_empty() {
            let error = FrameError::Unsendable(
                "the previous frame is only partly sent; call `flush` until it succeeds".into(),
            );
            return Err(io::Error::from(error).into());
        }
        if let Err(error) = encode(&mut self.output) {
            self.output.clear();
            return Err(error);
        }
        Ok(self.flush(stream)?)
    }

    pub fn flush(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while self.sent < self.output.len() {
            match stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        if self.output.capacity() > CHUNK {
            self.output = BytesMut::new();
        }
        stream.flush()
    }

    /// Returns the received bytes that were not decoded.
    pub fn unread(&mut self) -> &mut BytesMut {
        &mut self.input.data
    }

    pub fn shrink(&mut self) {
        self.input.shrink();
        if self.output.is_empty() {
            self.output = BytesMut::new();
        }
    }

    pub fn size(&self) -> usize {
        self.input.size() + self.output.capacity()
    }
}
