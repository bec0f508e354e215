//! An adapter for codecs of tokio-util, whose traits are not `async`.

use bytes::BytesMut;
use tokio_util::codec;

use super::{Decoder, Encoder};

/// Adapts a codec for tokio-util's traits, with its own message and error types.
///
/// The maximum size of the buffer is an argument, because tokio-util's trait does not declare it. A
/// codec may have its own limit as well, and may reserve memory up to that limit. No error counts
/// as recoverable.
///
/// ```
/// use socketserver::framing::{Framed, TokioCodec};
/// use tokio_util::codec::{LinesCodec, LinesCodecError};
///
/// let codec = TokioCodec::new(LinesCodec::new_with_max_length(80), 82);
/// let mut lines = Framed::new(&b"one\ntwo"[..], codec);
/// assert_eq!(lines.read()?.as_deref(), Some("one"));
/// assert_eq!(lines.read()?.as_deref(), Some("two"));
/// # Ok::<(), LinesCodecError>(())
/// ```
#[derive(Clone, Debug)]
pub struct TokioCodec<C> {
    codec: C,
    buffer_limit: usize,
}

impl<C> TokioCodec<C> {
    /// Wraps a codec whose longest frame has `buffer_limit` bytes on the wire, including its head
    /// and its end.
    #[must_use]
    pub fn new(codec: C, buffer_limit: usize) -> Self {
        Self {
            codec,
            buffer_limit,
        }
    }
}

impl<C: codec::Decoder> Decoder for TokioCodec<C> {
    type Item = C::Item;
    type Error = C::Error;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<C::Item>, C::Error> {
        self.codec.decode(src)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<C::Item>, C::Error> {
        self.codec.decode_eof(src)
    }

    fn buffer_limit(&self) -> usize {
        self.buffer_limit
    }
}

impl<C: codec::Encoder<I>, I> Encoder<I> for TokioCodec<C> {
    type Error = C::Error;

    fn encode(&mut self, item: I, dst: &mut BytesMut) -> Result<(), C::Error> {
        self.codec.encode(item, dst)
    }
}
