//! Bodies in pieces, for frames that should not be in memory as a whole. See `json_header.rs`.

use std::fmt;
use std::io::{self, Read, Write};

use bytes::{Buf, BytesMut};
use serde_json::{Map, Value};

use super::frame_state::FrameState;
use super::framed::ProgressCallback;
use super::json_header::Incoming;
use super::{Decoder, FrameError, Framed, JsonHeader};

impl<S: Read> Framed<S, JsonHeader> {
    /// Reads the next header and returns a reader of its body. Returns `None` if the peer has
    /// closed the stream after a frame.
    ///
    /// Reading the next frame skips the unread rest of the body.
    ///
    /// # Errors
    /// Returns the errors of [`Framed::read`]. A body longer than
    /// [`max_body`](JsonHeader::max_body) is rejected, although it would not be buffered. Set the
    /// limit to `u64::MAX` to accept every length.
    ///
    /// ```
    /// use std::io::Read;
    /// use socketserver::framing::{Framed, FrameError, JsonHeader};
    ///
    /// let wire = &b"\x16\0\0\0{\"dataBodyLength\": 10}0123456789"[..];
    /// let mut frames = Framed::new(wire, JsonHeader::default().max_body(u64::MAX));
    /// let mut body = frames.read_body()?.unwrap();
    /// let mut piece = [0; 4];
    /// body.read_exact(&mut piece)?;
    /// assert_eq!((&piece, body.remaining()), (b"0123", 6));
    /// assert!(frames.read_body()?.is_none());
    /// # Ok::<(), FrameError>(())
    /// ```
    pub fn read_body(&mut self) -> Result<Option<JsonBody<'_, S>>, FrameError> {
        let on_progress = self.on_progress();
        let (stream, codec, state) = self.split();
        let Some(length) = state.read(stream, &mut HeaderOnly(codec), on_progress)? else {
            return Ok(None);
        };
        codec.incoming = Incoming::Rest(length);
        Ok(Some(JsonBody {
            stream,
            codec,
            state,
            on_progress,
        }))
    }
}

impl<S: Write> Framed<S, JsonHeader> {
    /// Sends the header of a body of `length` bytes and returns a writer for the body.
    ///
    /// No other frame can be sent until the whole body is written.
    ///
    /// # Errors
    /// Returns the errors of [`Framed::write`]. If the stream accepts only a part of the header, no
    /// body can follow, and the connection is unusable.
    ///
    /// ```
    /// use std::io::{self, Write};
    /// use socketserver::framing::{Framed, FrameError, JsonHeader};
    ///
    /// let mut frames = Framed::new(Vec::new(), JsonHeader::default());
    /// let mut body = frames.write_body(5)?;
    /// body.write_all(b"he")?;
    /// io::copy(&mut &b"llo"[..], &mut body)?;
    /// body.finish()?;
    /// assert_eq!(frames.stream(), b"\x15\0\0\0{\"dataBodyLength\": 5}hello");
    /// # Ok::<(), FrameError>(())
    /// ```
    pub fn write_body(&mut self, length: u64) -> Result<JsonBodyWriter<'_, S>, FrameError> {
        self.write_body_with(length, &Map::new())
    }

    /// Sends a header with further members after `dataBodyLength`, and returns a writer for the
    /// body. A peer ignores unknown members.
    ///
    /// # Errors
    /// Returns the errors of [`Framed::write`].
    ///
    /// ```
    /// use socketserver::framing::{Framed, FrameError, JsonHeader, Map};
    /// use std::io::Write;
    ///
    /// let mut wire = Vec::new();
    /// let mut frames = Framed::new(&mut wire, JsonHeader::default());
    /// let members = Map::from_iter([("exitStatus".into(), 1.into())]);
    /// frames.write_body_with(2, &members)?.write_all(b"no")?;
    /// assert_eq!(wire, b"\x26\0\0\0{\"dataBodyLength\": 2, \"exitStatus\": 1}no");
    ///
    /// let mut frames = Framed::new(&wire[..], JsonHeader::default());
    /// let body = frames.read_body()?.unwrap();
    /// assert_eq!(body.header()["exitStatus"], 1);
    /// # Ok::<(), FrameError>(())
    /// ```
    pub fn write_body_with(
        &mut self,
        length: u64,
        members: &Map<String, Value>,
    ) -> Result<JsonBodyWriter<'_, S>, FrameError> {
        let (stream, codec, state) = self.split();
        state.write(stream, |dst| {
            codec.encode_head(length, members, dst)?;
            codec.unsent = length;
            Ok::<_, FrameError>(())
        })?;
        Ok(JsonBodyWriter { stream, codec })
    }
}

/// A reader of the body of a received frame. It ends where the frame ends.
pub struct JsonBody<'a, S> {
    stream: &'a mut S,
    codec: &'a mut JsonHeader,
    state: &'a mut FrameState,
    on_progress: ProgressCallback<S>,
}

impl<S> JsonBody<'_, S> {
    /// Returns the number of bytes that are not read yet.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        match self.codec.incoming {
            Incoming::Rest(left) => left,
            Incoming::Head | Incoming::Body(_) => 0,
        }
    }

    /// Returns the header with all its members.
    #[must_use]
    pub fn header(&self) -> &Map<String, Value> {
        &self.codec.header
    }
}

/// Fails with [`io::ErrorKind::UnexpectedEof`] if the peer closes the stream within the body. After
/// a timeout, reading can continue.
impl<S: Read> Read for JsonBody<'_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Incoming::Rest(left) = &mut self.codec.incoming else {
            return Ok(0);
        };
        let wanted = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let unread = self.state.unread();
        let n = if unread.is_empty() {
            (self.on_progress)(self.stream, true);
            self.stream.read(&mut buf[..wanted])?
        } else {
            let n = unread.len().min(wanted);
            unread.copy_to_slice(&mut buf[..n]);
            n
        };
        if n == 0 {
            return Err(FrameError::UnexpectedEnd.into());
        }
        *left -= n as u64;
        if *left == 0 {
            (self.on_progress)(self.stream, false);
        }
        Ok(n)
    }
}

impl<S> fmt::Debug for JsonBody<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonBody")
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}

/// A writer of the body of a frame. It accepts exactly the announced number of bytes and does not
/// buffer.
#[must_use = "the peer waits for the body"]
pub struct JsonBodyWriter<'a, S> {
    stream: &'a mut S,
    codec: &'a mut JsonHeader,
}

impl<S: Write> JsonBodyWriter<'_, S> {
    /// Returns the number of bytes that are not written yet.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.codec.unsent
    }

    /// Checks that the body is complete and flushes the stream.
    ///
    /// # Errors
    /// Returns [`FrameError::Unsendable`] if the body is incomplete. The peer still waits for the
    /// rest, and no other frame can be sent.
    pub fn finish(self) -> Result<(), FrameError> {
        self.stream.flush()?;
        match self.codec.unsent {
            0 => Ok(()),
            unsent => Err(FrameError::Unsendable(
                format!("{unsent} bytes of the body were not written").into(),
            )),
        }
    }
}

/// Writing more than the announced length fails with [`io::ErrorKind::InvalidInput`] and sends
/// nothing.
impl<S: Write> Write for JsonBodyWriter<'_, S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() as u64 > self.codec.unsent {
            return Err(FrameError::too_long_to_send(buf.len() as u64, self.codec.unsent).into());
        }
        let n = self.stream.write(buf)?;
        self.codec.unsent -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S> fmt::Debug for JsonBodyWriter<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonBodyWriter")
            .field("remaining", &self.codec.unsent)
            .finish_non_exhaustive()
    }
}

/// A decoder of headers only.
struct HeaderOnly<'a>(&'a mut JsonHeader);

impl Decoder for HeaderOnly<'_> {
    type Item = u64;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<u64>, FrameError> {
        self.0.decode_head(src)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<u64>, FrameError> {
        match self.decode(src)? {
            None => self.0.check_end(src).map(|()| None),
            length => Ok(length),
        }
    }

    fn buffer_limit(&self) -> usize {
        self.0.head_limit()
    }
}
