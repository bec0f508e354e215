//! What is left of a stream of frames without the stream.

use std::fmt;

use bytes::BytesMut;

use super::frame_state::FrameState;

/// A [`Framed`](super::Framed) without its stream: the codec, and what was read and not yet decoded.
///
/// A handler that is [kept alive](crate::Connection::suspend_until_readable) has it between its calls.
///
/// ```
/// use socketserver::{Connection, PooledTcpServer, RequestHandler, Result};
/// use socketserver::framing::{Framed, Lines, FramedParts};
///
/// #[derive(Default)]
/// struct Echo(FramedParts<Lines>);
///
/// impl RequestHandler<Connection> for Echo {
///     fn handle(&mut self, conn: &mut Connection) -> Result<()> {
///         let mut lines = Framed::from_parts(conn, std::mem::take(&mut self.0));
///         let mut next = lines.read()?;
///         if next.is_some() {
///             lines.stream_mut().suspend_until_readable();
///         }
///         while let Some(line) = next {
///             lines.write(line)?;
///             next = lines.read_buffered()?;
///         }
///         (_, self.0) = lines.into_parts();
///         Ok(())
///     }
/// }
///
/// let server = PooledTcpServer::bind("127.0.0.1:0", Echo::default)?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
#[derive(Default)]
pub struct FramedParts<C> {
    pub(super) codec: C,
    pub(super) wire: FrameState,
}

impl<C> FramedParts<C> {
    /// Nothing has been read yet.
    #[must_use]
    pub fn new(codec: C) -> Self {
        Self::with_unread(codec, BytesMut::new())
    }

    /// Somebody else has read `unread` from the stream, and it is to be decoded first.
    #[must_use]
    pub fn with_unread(codec: C, unread: BytesMut) -> Self {
        Self {
            codec,
            wire: FrameState::with_unread(unread),
        }
    }

    /// What was read and not decoded, for somebody else.
    #[must_use]
    pub fn into_unread(mut self) -> BytesMut {
        std::mem::take(self.wire.unread())
    }
}

impl<C: fmt::Debug> fmt::Debug for FramedParts<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("codec", &self.codec)
            .field("memory", &self.wire.size())
            .finish_non_exhaustive()
    }
}
