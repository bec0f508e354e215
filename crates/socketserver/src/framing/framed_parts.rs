//! The state of a stream of frames without the stream.

use std::fmt;

use bytes::BytesMut;

use super::frame_state::FrameState;

/// A [`Framed`](super::Framed) without its stream: the codec, and the bytes that were read but not
/// decoded.
///
/// A handler that [suspends its connection](crate::Connection::suspend_until_readable) keeps this
/// value between its calls.
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
    pub(super) state: FrameState,
}

impl<C> FramedParts<C> {
    /// Creates the parts of a stream from which no byte was read.
    #[must_use]
    pub fn new(codec: C) -> Self {
        Self::with_unread(codec, BytesMut::new())
    }

    /// Creates the parts of a stream from which other code has read `unread`. These bytes are
    /// decoded first.
    #[must_use]
    pub fn with_unread(codec: C, unread: BytesMut) -> Self {
        Self {
            codec,
            state: FrameState::with_unread(unread),
        }
    }

    /// Returns the bytes that were read but not decoded.
    #[must_use]
    pub fn into_unread(mut self) -> BytesMut {
        std::mem::take(self.state.unread())
    }
}

impl<C: fmt::Debug> fmt::Debug for FramedParts<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramedParts")
            .field("codec", &self.codec)
            .field("memory", &self.state.size())
            .finish_non_exhaustive()
    }
}
