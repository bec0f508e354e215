//! Codecs that were written for tokio. Their traits have no `async` in them.

use bytes::BytesMut;
use tokio_util::codec;

use super::{Decoder, Encoder};

/// Any codec of tokio-util, or written for it, with its own messages and its own error type.
///
/// How much such a decoder may hold has to be said: its trait has no word for it. It may have a limit
/// of its own as well, and may reserve memory up to that. None of its errors counts as recoverable.
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
    /// Wraps a codec whose longest frame has `buffer_limit` bytes on the wire, its head and its end
    /// included.
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
