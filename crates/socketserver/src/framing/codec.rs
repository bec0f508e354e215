//! What turns bytes into messages and back: the two traits. They know nothing of streams.

use std::io;

use bytes::BytesMut;

use super::FrameError;

/// Takes messages out of bytes that arrive in pieces.
///
/// The shape is that of tokio-util's `Decoder`, with two additions: a decoder says how much it may
/// hold, and after which errors it can go on.
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
    /// A message.
    type Item;
    /// What can go wrong. It takes errors of the stream as well, so that a reader has one type.
    type Error: From<io::Error>;

    /// Takes the next message from the front of `src`; `None` asks for more bytes.
    ///
    /// It is called again with the same bytes and more, and with what follows a message.
    ///
    /// # Errors
    /// Those of the format. No message is looked for after one, unless it
    /// [is recoverable](Decoder::is_recoverable).
    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, Self::Error>;

    /// Takes the next message when no more bytes will come; it is called until it returns `None`.
    ///
    /// # Errors
    /// Unless a decoder knows better, bytes that are left over are a
    /// [`FrameError::UnexpectedEnd`].
    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, Self::Error> {
        match self.decode(src)? {
            None if !src.is_empty() => Err(io::Error::from(FrameError::UnexpectedEnd).into()),
            item => Ok(item),
        }
    }

    /// The most bytes that a message may need to have in `src` until it is complete.
    ///
    /// A reader allocates no more than this and one chunk, and ends a stream of which it holds so
    /// much without a message.
    fn buffer_limit(&self) -> usize;

    /// Whether messages after this error can still be told apart. Usually they cannot.
    fn is_recoverable(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

/// Turns messages into bytes.
pub trait Encoder<Item> {
    /// What can go wrong; see [`Decoder::Error`].
    type Error: From<io::Error>;

    /// Appends the frame of `item` to `dst`.
    ///
    /// # Errors
    /// An item that has no frame, because it is too long for example.
    fn encode(&mut self, item: Item, dst: &mut BytesMut) -> Result<(), Self::Error>;
}
