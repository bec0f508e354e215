//! What is wrong with a frame.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io;

/// Why a frame could not be received or sent.
///
/// In a handler, `?` makes it a [`BoxError`](crate::BoxError). As an [`io::Error`], what a
/// peer has done is of the kind [`InvalidData`](io::ErrorKind::InvalidData) or
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof), and comes out again as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The peer announced, or sent, more than the codec takes.
    #[error(
        "frame too long: {claimed} bytes or more, and the limit is {limit}; raise the limit of the \
         codec, or have the peer send shorter frames"
    )]
    TooLong {
        /// The most that is taken, in bytes.
        limit: u64,
        /// What the peer announced (`u64::MAX` for more than that), or had sent when it was noticed.
        claimed: u64,
    },
    /// The bytes are none of this format.
    #[error("malformed frame: {reason}; does the peer speak another protocol?")]
    Malformed {
        /// What is wrong with them.
        reason: &'static str,
        /// What a parser said.
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// The peer ended the stream in the middle of a frame.
    #[error(
        "the peer ended in the middle of a frame; this message is lost, and it has to connect and \
         send it again"
    )]
    UnexpectedEnd,
    /// There is no frame for this message, or this is not the time for one. Nothing was sent.
    #[error("cannot send this frame: {0}")]
    Unsendable(Cow<'static, str>),
    /// The stream failed; a timeout is one of these.
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
                "its {len} bytes are more than the {limit} that fit; raise the limit of the \
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
