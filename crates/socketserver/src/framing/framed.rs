//! A stream of frames: a codec and a buffer on a stream.

use std::fmt;
use std::io::{self, Read, Write};
use std::iter::FusedIterator;

use super::frame_state::FrameState;
use super::{Decoder, Encoder, FramedParts};
use crate::Connection;

/// Reads and writes messages on a stream: a [`Connection`], a `&mut` to a connection, a
/// `TcpStream`, or one half of a stream.
///
/// # Memory
///
/// The reading side allocates at most [`buffer_limit`](Decoder::buffer_limit) and 8 KiB. While it
/// grows, it also holds the previous memory. Memory is allocated for received bytes, never for an
/// announced length. The next read frees the memory of a long frame. A `Bytes` value keeps the
/// memory in which it arrived, up to the same size again, so copy values that you keep for long.
/// The writing side holds one frame.
///
/// # After an error
///
/// * After an error of the stream, such as a timeout, no bytes are lost. Call the method again to
///   continue.
/// * After an error of the format, the next call continues if [the decoder can
///   recover](Decoder::is_recoverable). Otherwise the position of the next frame is unknown, and
///   every further read returns `None`.
///
/// ```
/// use socketserver::{Connection, ThreadingTcpServer, handler_fn};
/// use socketserver::framing::{Framed, LengthPrefix};
///
/// let echo = handler_fn(|conn: &mut Connection| {
///     let mut frames = Framed::new(conn, LengthPrefix::u32_be()).with_receive_rate();
///     while let Some(frame) = frames.read()? {
///         frames.write(frame)?;
///     }
///     Ok(())
/// });
/// let server = ThreadingTcpServer::bind("127.0.0.1:0", echo)?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
pub struct Framed<S, C> {
    stream: S,
    codec: C,
    state: FrameState,
    /// A callback for the beginning (`true`) and the end of a message.
    on_progress: Option<ProgressCallback<S>>,
}

pub(super) type ProgressCallback<S> = fn(&mut S, bool);

impl<S, C> Framed<S, C> {
    /// Creates a `Framed` on a stream from which no byte was read.
    #[must_use]
    pub fn new(stream: S, codec: C) -> Self {
        Self::from_parts(stream, FramedParts::new(codec))
    }

    /// Continues with the result of [`into_parts`](Framed::into_parts).
    #[must_use]
    pub fn from_parts(stream: S, parts: FramedParts<C>) -> Self {
        Self {
            stream,
            codec: parts.codec,
            state: parts.state,
            on_progress: None,
        }
    }

    /// Separates the stream from the codec and the bytes that were read but not decoded. Frees the
    /// memory that these bytes do not need.
    #[must_use]
    pub fn into_parts(mut self) -> (S, FramedParts<C>) {
        self.state.shrink();
        let Self {
            stream,
            codec,
            state,
            ..
        } = self;
        (stream, FramedParts { codec, state })
    }

    /// Continues with another codec at the first byte that is not decoded. Use this for a protocol
    /// that begins with lines, for example.
    ///
    /// ```
    /// use socketserver::framing::{Framed, FrameError, Lines, Netstring};
    ///
    /// let mut lines = Framed::new(&b"STARTNET\n3:abc,"[..], Lines::default());
    /// assert_eq!(lines.read()?.unwrap(), "STARTNET");
    /// let mut strings = lines.with_codec(Netstring::default());
    /// assert_eq!(strings.read()?.unwrap(), "abc");
    /// # Ok::<(), FrameError>(())
    /// ```
    #[must_use]
    pub fn with_codec<D>(self, codec: D) -> Framed<S, D> {
        Framed {
            stream: self.stream,
            codec,
            state: self.state,
            on_progress: self.on_progress,
        }
    }

    /// Returns the stream.
    #[must_use]
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Returns the stream, for example to set its timeouts. Bytes that are read or written directly
    /// on the stream are missing in the frames.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Returns the codec.
    #[must_use]
    pub fn codec(&self) -> &C {
        &self.codec
    }

    /// Returns the size of the buffers in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.state.size()
    }

    pub(super) fn on_progress(&self) -> ProgressCallback<S> {
        self.on_progress.unwrap_or(|_, _| {})
    }

    pub(super) fn split(&mut self) -> (&mut S, &mut C, &mut FrameState) {
        (&mut self.stream, &mut self.codec, &mut self.state)
    }
}

impl<C> Framed<&mut Connection, C> {
    /// Applies the connection's [`receive_rate`](crate::Timeouts::receive_rate) to each message. A
    /// message that arrives too slowly fails with a timeout; silence between messages does not.
    #[must_use]
    pub fn with_receive_rate(mut self) -> Self {
        self.on_progress = Some(|conn, begins| {
            if begins {
                conn.begin_message();
            } else {
                conn.end_message();
            }
        });
        self
    }
}

impl<S: Read, C: Decoder> Framed<S, C> {
    /// Reads until a message is complete. Returns `None` if the peer has closed the stream after a
    /// message.
    ///
    /// # Errors
    /// Returns the errors of the stream and of the codec, [see above](Framed#after-an-error). The
    /// codec returns an error if the peer closes the stream within a frame.
    pub fn read(&mut self) -> Result<Option<C::Item>, C::Error> {
        let on_progress = self.on_progress();
        self.state
            .read(&mut self.stream, &mut self.codec, on_progress)
    }

    /// Returns an iterator over the messages until the peer closes the stream. The iterator
    /// continues after an error: see [`read`](Framed::read).
    ///
    /// ```
    /// use socketserver::framing::{Framed, FrameError, Lines};
    ///
    /// let mut lines = Framed::new(&b"a\nb\n"[..], Lines::default());
    /// let all: Vec<_> = lines.frames().collect::<Result<_, FrameError>>()?;
    /// assert_eq!(all, ["a", "b"]);
    /// # Ok::<(), FrameError>(())
    /// ```
    pub fn frames(&mut self) -> FrameIter<'_, S, C> {
        FrameIter(self)
    }
}

impl<S, C: Decoder> Framed<S, C> {
    /// Returns the next message if it is completely buffered. This method never waits.
    ///
    /// A handler that [suspends its connection](crate::Connection::suspend_until_readable) must
    /// take these messages before it returns. The server calls it again for new bytes, not for
    /// buffered bytes.
    ///
    /// # Errors
    /// Returns the errors of the codec.
    pub fn read_buffered(&mut self) -> Result<Option<C::Item>, C::Error> {
        self.state.decode(&mut self.codec)
    }
}

impl<S: Write, C> Framed<S, C> {
    /// Sends a message. The whole frame is passed to one write of the stream.
    ///
    /// # Errors
    /// Returns the errors of the codec; in this case nothing was sent. Returns the errors of the
    /// stream; in this case the rest of the frame is kept for [`flush`](Framed::flush), and further
    /// messages fail until `flush` succeeds.
    pub fn write<I>(&mut self, item: I) -> Result<(), C::Error>
    where
        C: Encoder<I>,
    {
        self.state
            .write(&mut self.stream, |dst| self.codec.encode(item, dst))
    }

    /// Sends the rest of a frame after a failed [`write`](Framed::write).
    ///
    /// # Errors
    /// Returns the errors of the stream.
    pub fn flush(&mut self) -> io::Result<()> {
        self.state.flush(&mut self.stream)
    }
}

impl<S, C: fmt::Debug> fmt::Debug for Framed<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framed")
            .field("codec", &self.codec)
            .field("memory", &self.memory())
            .finish_non_exhaustive()
    }
}

/// An iterator over the messages of a stream; created by [`Framed::frames`].
#[derive(Debug)]
pub struct FrameIter<'a, S, C>(&'a mut Framed<S, C>);

impl<S: Read, C: Decoder> Iterator for FrameIter<'_, S, C> {
    type Item = Result<C::Item, C::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.read().transpose()
    }
}

impl<S: Read, C: Decoder> FusedIterator for FrameIter<'_, S, C> {}
