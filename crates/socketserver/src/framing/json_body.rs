//! Bodies in pieces, for frames that are better not in memory as a whole. See `json_header.rs`.

use std::fmt;
use std::io::{self, Read, Write};

use bytes::{Buf, BytesMut};
use serde_json::{Map, Value};

use super::frame_state::FrameState;
use super::framed::ProgressCallback;
use super::json_header::Incoming;
use super::{Decoder, FrameError, Framed, JsonHeader};

impl<S: Read> Framed<S, JsonHeader> {
    /// Reads the next header, and returns its body to be read in pieces; `None` when the peer has
    /// ended after a frame.
    ///
    /// What is not read of the body is skipped when the next frame is asked for.
    ///
    /// # Errors
    /// Those of [`Framed::read`]. A body longer than [`max_body`](JsonHeader::max_body) is refused,
    /// though it would not be held: the limit can be `u64::MAX`.
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
        let told = self.told();
        let (stream, codec, wire) = self.split();
        let Some(length) = wire.read(stream, &mut HeaderOnly(codec), told)? else {
            return Ok(None);
        };
        codec.incoming = Incoming::Rest(length);
        Ok(Some(JsonBody {
            stream,
            codec,
            wire,
            told,
        }))
    }
}

impl<S: Write> Framed<S, JsonHeader> {
    /// Sends the header of a body of `length` bytes, which are to be written to what is returned.
    ///
    /// Until all of them are written, no other frame can be sent.
    ///
    /// # Errors
    /// Those of [`Framed::write`]. When the stream takes the header in part only, no body can follow:
    /// the connection is of no use any more.
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

    /// The same, with further members in the header, behind `dataBodyLength`. A peer that does not
    /// know them ignores them.
    ///
    /// # Errors
    /// Those of [`Framed::write`].
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
        let (stream, codec, wire) = self.split();
        wire.write(stream, |dst| {
            codec.encode_head(length, members, dst)?;
            codec.owed = length;
            Ok::<_, FrameError>(())
        })?;
        Ok(JsonBodyWriter { stream, codec })
    }
}

/// The body of a frame that is being received. It ends where the frame ends.
pub struct JsonBody<'a, S> {
    stream: &'a mut S,
    codec: &'a mut JsonHeader,
    wire: &'a mut FrameState,
    told: ProgressCallback<S>,
}

impl<S> JsonBody<'_, S> {
    /// How many bytes are still to be read.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        match self.codec.incoming {
            Incoming::Rest(left) => left,
            Incoming::Head | Incoming::Body(_) => 0,
        }
    }

    /// The header, with whatever else is in it.
    #[must_use]
    pub fn header(&self) -> &Map<String, Value> {
        &self.codec.header
    }
}

/// Fails with [`io::ErrorKind::UnexpectedEof`] if the peer ends before the body does. After a timeout
/// it can be read on.
impl<S: Read> Read for JsonBody<'_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Incoming::Rest(left) = &mut self.codec.incoming else {
            return Ok(0);
        };
        let wanted = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let unread = self.wire.unread();
        let n = if unread.is_empty() {
            (self.told)(self.stream, true);
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
            (self.told)(self.stream, false);
        }
        Ok(n)
    }
}

impl<S> fmt::Debug for JsonBody<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}

/// The body of a frame that is being sent: it takes as many bytes as were announced, unbuffered.
#[must_use = "the peer waits for the body"]
pub struct JsonBodyWriter<'a, S> {
    stream: &'a mut S,
    codec: &'a mut JsonHeader,
}

impl<S: Write> JsonBodyWriter<'_, S> {
    /// How many bytes are still to be written.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.codec.owed
    }

    /// Makes sure that the body is complete.
    ///
    /// # Errors
    /// [`FrameError::Unsendable`] if it is not: the peer still waits for the rest, and nothing else
    /// can be sent.
    pub fn finish(self) -> Result<(), FrameError> {
        self.stream.flush()?;
        match self.codec.owed {
            0 => Ok(()),
            owed => Err(FrameError::Unsendable(
                format!("{owed} bytes of the body were not written").into(),
            )),
        }
    }
}

/// Writing more than was announced fails with [`io::ErrorKind::InvalidInput`], and sends nothing.
impl<S: Write> Write for JsonBodyWriter<'_, S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() as u64 > self.codec.owed {
            return Err(FrameError::too_long_to_send(buf.len() as u64, self.codec.owed).into());
        }
        let n = self.stream.write(buf)?;
        self.codec.owed -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S> fmt::Debug for JsonBodyWriter<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyWriter")
            .field("remaining", &self.codec.owed)
            .finish_non_exhaustive()
    }
}

/// Decodes headers only.
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
