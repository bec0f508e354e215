//! The error type of frames.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io;

/// The reason why a frame could not be received or sent.
///
/// In a handler, `?` converts this error to a [`BoxError`](crate::BoxError). It also converts to an
/// [`io::Error`] and back without loss. Errors caused by the peer then have the kind
/// [`InvalidData`](io::ErrorKind::InvalidData) or [`UnexpectedEof`](io::ErrorKind::UnexpectedEof).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The peer announced or sent a frame that exceeds the limit of the codec.
    #[error(
        "frame too long: {claimed} bytes or more, and the limit is {limit}; raise the limit of the \
         codec, or have the peer send shorter frames"
    )]
    TooLong {
        /// The limit in bytes.
        limit: u64,
        /// The length that the peer announced (`u64::MAX` for longer ones), or the number of bytes
        /// received so far.
        claimed: u64,
    },
    /// The input is not valid in this format.
    #[error("malformed frame: {reason}; the peer may use another protocol")]
    Malformed {
        /// The reason why the input is invalid.
        reason: &'static str,
        /// The error of the parser.
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// The peer closed the stream in the middle of a frame.
    #[error(
        "the peer closed the stream in the middle of a frame; the message is incomplete, and the peer \
         must connect and send it again"
    )]
    UnexpectedEnd,
    /// The message has no valid frame, or no frame can be sent now. Nothing was sent.
    #[error("cannot send this frame: {0}")]
    Unsendable(Cow<'static, str>),
    /// The stream failed, for example with a timeout.
    #[error("cannot read or write frames")]
    Io(#[source] io::Error),
}

impl FrameError {
    pub(super) fn malformed(reason: &'static str) -> Self {
        Self::Malformed {
            reason,
            source: None,
        }
    }

    pub(super) fn malformed_by(
        reason: &'static str,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self::Malformed {
            reason,
            source: Some(Box::new(source)),
        }
    }

    pub(super) fn too_long_to_send(len: u64, limit: u64) -> Self {
        Self::Unsendable(
            format!(
                "its {len} bytes are more than the {limit} allowed; raise the limit of the \
                 codec, or send several frames"
            )
            .into(),
        )
    }
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        error.downcast().unwrap_or_else(Self::Io)
    }
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        let kind = match error {
            FrameError::Io(error) => return error,
            FrameError::TooLong { .. } | FrameError::Malformed { .. } => io::ErrorKind::InvalidData,
            FrameError::UnexpectedEnd => io::ErrorKind::UnexpectedEof,
            FrameError::Unsendable(_) => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}
