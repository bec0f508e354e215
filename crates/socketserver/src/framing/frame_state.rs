//! Both directions of a stream on which frames are read and written, without the stream itself.

use std::io::{self, Read, Write};

use bytes::BytesMut;

use super::buffer::{Buffer, CHUNK};
use super::{Decoder, FrameError};
use crate::park::give_way;

#[derive(Default)]
pub(super) struct FrameState {
    input: Buffer,
    /// The frame that is being sent, and how much of it is.
    output: BytesMut,
    sent: usize,
    stage: Stage,
    /// A part of a message has been read, and no end of it.
    has_begun: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// The peer has ended; the decoder may have something left.
    Ended,
    /// Nothing will be decoded any more.
    Over,
}

impl FrameState {
    pub fn with_unread(unread: BytesMut) -> Self {
        let mut wire = Self::default();
        wire.input.data = unread;
        wire
    }

    /// Reads until a message is complete. `told` hears whether one has begun, before each wait for
    /// more of it and once it is over.
    pub fn read<S: Read, D: Decoder>(
        &mut self,
        stream: &mut S,
        decoder: &mut D,
        told: fn(&mut S, bool),
    ) -> Result<Option<D::Item>, D::Error> {
        let mut has_read = false;
        loop {
            let decoded = self.decode(decoder);
            if !has_read && matches!(decoded, Ok(Some(_))) {
                // It was here already, so that nothing else has let others go first.
                give_way();
            }
            if !matches!(decoded, Ok(None)) || self.stage == Stage::Over {
                self.has_begun = false;
                told(stream, false);
                return decoded;
            }
            // The decoder may hold the beginning itself.
            self.has_begun |= !self.input.data.is_empty();
            if self.has_begun {
                told(stream, true);
            }
            has_read = true;
            match self.input.fill(stream, decoder.buffer_limit())? {
                0 => self.stage = Stage::Ended,
                _ => self.has_begun = true,
            }
        }
    }

    /// The next message, if all of it is here.
    pub fn decode<D: Decoder>(&mut self, decoder: &mut D) -> Result<Option<D::Item>, D::Error> {
        let data = &mut self.input.data;
        let decoded = match self.stage {
            Stage::Open => decoder.decode(data),
            Stage::Ended => decoder.decode_eof(data),
            Stage::Over => return Ok(None),
        };
        match &decoded {
            Ok(Some(_)) => {}
            Ok(None) if self.stage == Stage::Ended => self.stage = Stage::Over,
            Ok(None) if data.len() < decoder.buffer_limit() => {}
            Ok(None) => {
                self.stage = Stage::Over;
                let error = FrameError::TooLong {
                    limit: decoder.buffer_limit() as u64,
                    claimed: data.len() as u64,
                };
                return Err(io::Error::from(error).into());
            }
            Err(error) if decoder.is_recoverable(error) => {}
            Err(_) => self.stage = Stage::Over,
        }
        decoded
    }

    /// Sends what `encode` appends. If it fails, nothing is sent.
    pub fn write<E: From<io::Error>>(
        &mut self,
        stream: &mut impl Write,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.output.is_empty() {
            let error = FrameError::Unsendable(
                "the one before it is sent in part only; flush until that succeeds".into(),
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

    /// What has arrived and was not decoded.
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
