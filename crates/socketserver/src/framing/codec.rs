//! The traits of codecs, which convert bytes to messages and messages to bytes. Codecs are
//! independent of streams.

use std::io;

use bytes::BytesMut;

use super::FrameError;

/// Extracts messages from bytes that arrive in pieces.
///
/// The trait resembles tokio-util's `Decoder`, with two additions: a decoder declares the maximum
/// size of its buffer, and the errors that it can recover from.
///
/// ```
/// use socketserver::framing::{Bytes, BytesMut, Decoder, FrameError};
///
/// /// Records of four bytes.
/// struct Quads;
///
/// impl Decoder for Quads {
///     type Item = Bytes;
///     type Error = FrameError;
///
///     fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
///         Ok((src.len() >= 4).then(|| src.split_to(4).freeze()))
///     }
///
///     fn buffer_limit(&self) -> usize {
///         4
///     }
/// }
///
/// let mut src = BytesMut::from("12345678");
/// assert_eq!(Quads.decode(&mut src)?.unwrap(), "1234");
/// # Ok::<(), FrameError>(())
/// ```
pub trait Decoder {
    /// The type of a message.
    type Item;
    /// The error type. It converts from errors of the stream, so that a reader has one error type.
    type Error: From<io::Error>;

    /// Takes the next message from the front of `src`. Returns `None` if the message is incomplete.
    ///
    /// The reader calls this method again with the same bytes and more bytes, and after a message
    /// with the bytes that follow it.
    ///
    /// # Errors
    /// Returns an error if the bytes are invalid in this format. The reader then stops decoding,
    /// unless the error [is recoverable](Decoder::is_recoverable).
    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, Self::Error>;

    /// Takes the next message at the end of the stream. The reader calls this method until it
    /// returns `None`.
    ///
    /// # Errors
    /// The default implementation returns [`FrameError::UnexpectedEnd`] if bytes are left over.
    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, Self::Error> {
        match self.decode(src)? {
            None if !src.is_empty() => Err(io::Error::from(FrameError::UnexpectedEnd).into()),
            item => Ok(item),
        }
    }

    /// Returns the maximum number of bytes in `src` that a message may need to be complete.
    ///
    /// A reader allocates at most this size and one chunk. It stops with an error if the buffer
    /// holds this many bytes without a message.
    fn buffer_limit(&self) -> usize;

    /// Returns true if decoding can continue after this error. Defaults to false.
    fn is_recoverable(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

/// Converts messages to bytes.
pub trait Encoder<Item> {
    /// The error type; see [`Decoder::Error`].
    type Error: From<io::Error>;

    /// Appends the frame of `item` to `dst`.
    ///
    /// # Errors
    /// Returns an error if the item has no valid frame, for example because it is too long.
    fn encode(&mut self, item: Item, dst: &mut BytesMut) -> Result<(), Self::Error>;
}
