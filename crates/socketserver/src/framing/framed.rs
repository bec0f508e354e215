//! A stream of frames: a codec, a buffer, and anything that reads or writes.

use std::fmt;
use std::io::{self, Read, Write};
use std::iter::FusedIterator;

use super::frame_state::FrameState;
use super::{Decoder, Encoder, FramedParts};
use crate::Connection;

/// Reads and writes messages on a stream: on a [`Connection`], a `&mut` to one, a
/// `TcpStream`, or one half of them.
///
/// # What it holds
///
/// The reading side has at most [`buffer_limit`](Decoder::buffer_limit) and 8 KiB of memory,
/// allocated for what has arrived and not for what was announced (and what it moves from, while it
/// grows). It gives back what a long frame needed with the next read. A `Bytes` that it has handed
/// out keeps the memory in which it arrived, up to as much again: copy what is kept for long. The
/// writing side has one frame.
///
/// # After an error
///
/// * Of the stream, such as a timeout: nothing is lost, calling again goes on.
/// * Of the format: if [the decoder can go on](Decoder::is_recoverable), it does with the next call.
///   If not, nobody knows where the next frame begins: every further read returns `None`.
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
    wire: FrameState,
    /// Told of a message's beginning (`true`) and end.
    told: Option<ProgressCallback<S>>,
}

pub(super) type ProgressCallback<S> = fn(&mut S, bool);

impl<S, C> Framed<S, C> {
    /// Frames on `stream`, of which nothing was read yet.
    #[must_use]
    pub fn new(stream: S, codec: C) -> Self {
        Self::from_parts(stream, FramedParts::new(codec))
    }

    /// Goes on where [`into_parts`](Framed::into_parts) has stopped.
    #[must_use]
    pub fn from_parts(stream: S, parts: FramedParts<C>) -> Self {
        Self {
            stream,
            codec: parts.codec,
            wire: parts.wire,
            told: None,
        }
    }

    /// Separates the stream from what was read of it, and not yet decoded. Memory that this does
    /// not need is given back.
    #[must_use]
    pub fn into_parts(mut self) -> (S, FramedParts<C>) {
        self.wire.shrink();
        let Self {
            stream,
            codec,
            wire,
            ..
        } = self;
        (stream, FramedParts { codec, wire })
    }

    /// Goes on with another codec, from the first byte that is not decoded: for a protocol that
    /// begins with lines, for example.
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
            wire: self.wire,
            told: self.told,
        }
    }

    /// The stream.
    #[must_use]
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// The stream, to set its timeouts for example. What is read from it or written to it directly
    /// is missing in the frames.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The codec.
    #[must_use]
    pub fn codec(&self) -> &C {
        &self.codec
    }

    /// How much memory its buffers have, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.wire.size()
    }

    pub(super) fn told(&self) -> ProgressCallback<S> {
        self.told.unwrap_or(|_, _| {})
    }

    pub(super) fn split(&mut self) -> (&mut S, &mut C, &mut FrameState) {
        (&mut self.stream, &mut self.codec, &mut self.wire)
    }
}

impl<C> Framed<&mut Connection, C> {
    /// Holds the peer to the connection's [`receive_rate`](crate::Timeouts::receive_rate) within
    /// each message: one that trickles in is cut, silence between messages is not.
    #[must_use]
    pub fn with_receive_rate(mut self) -> Self {
        self.told = Some(|conn, begins| {
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
    /// Reads until a message is complete; `None` when the peer has ended after one.
    ///
    /// # Errors
    /// Those of the stream and of the codec, [see above](Framed#after-an-error). A peer that ends
    /// within a frame is one of the latter.
    pub fn read(&mut self) -> Result<Option<C::Item>, C::Error> {
        let told = self.told();
        self.wire.read(&mut self.stream, &mut self.codec, told)
    }

    /// The messages until the peer ends. An error does not end it: see [`read`](Framed::read).
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
    /// The next message if all of it has been read from the stream already. It never waits.
    ///
    /// A handler that is [kept alive](crate::Connection::suspend_until_readable) has to take these before it
    /// returns: it is called again for what is still to come, not for what it holds.
    ///
    /// # Errors
    /// Those of the codec.
    pub fn read_buffered(&mut self) -> Result<Option<C::Item>, C::Error> {
        self.wire.decode(&mut self.codec)
    }
}

impl<S: Write, C> Framed<S, C> {
    /// Sends a message: its whole frame in one write, as far as the stream takes it.
    ///
    /// # Errors
    /// Those of the codec, after which nothing was sent; and those of the stream, after which the
    /// rest of the frame is kept for [`flush`](Framed::flush). Nothing else is taken meanwhile.
    pub fn write<I>(&mut self, item: I) -> Result<(), C::Error>
    where
        C: Encoder<I>,
    {
        self.wire
            .write(&mut self.stream, |dst| self.codec.encode(item, dst))
    }

    /// Sends the rest of a frame whose [`write`](Framed::write) has failed.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn flush(&mut self) -> io::Result<()> {
        self.wire.flush(&mut self.stream)
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

/// The messages of a stream, made by [`Framed::frames`].
#[derive(Debug)]
pub struct FrameIter<'a, S, C>(&'a mut Framed<S, C>);

impl<S: Read, C: Decoder> Iterator for FrameIter<'_, S, C> {
    type Item = Result<C::Item, C::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.read().transpose()
    }
}

impl<S: Read, C: Decoder> FusedIterator for FrameIter<'_, S, C> {}
