//! Framing: messages on a stream of bytes.
//!
//! TCP delivers bytes, not messages. The bytes of three writes may arrive in one read or in seven
//! ("sticky packets"). A *framing* defines where a message ends. [`Framed`] applies a framing to a
//! stream, so that a handler reads and writes messages:
//!
//! ```
//! use socketserver::framing::{Framed, Lines};
//! use socketserver::{Connection, RequestHandler, Result, ThreadingTcpServer};
//!
//! #[derive(Default)]
//! struct Upper;
//!
//! impl RequestHandler<Connection> for Upper {
//!     fn handle(&mut self, conn: &mut Connection) -> Result<()> {
//!         let mut lines = Framed::new(conn, Lines::default().max_len(1024));
//!         while let Some(line) = lines.read()? {
//!             lines.write(line.to_ascii_uppercase())?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let server = ThreadingTcpServer::bind("127.0.0.1:0", Upper::default)?;
//! # Ok::<(), socketserver::BoxError>(())
//! ```
//!
//! # Codecs
//!
//! | Codec | On the wire | Default limit | Message |
//! |---|---|---|---|
//! | [`Lines`] | `hello\n`, `hello\r\n` | [64 KiB](Lines::DEFAULT_MAX_LEN) | [`Bytes`] |
//! | [`Utf8Lines`] | the same in UTF-8 | 64 KiB | `String` |
//! | [`LengthPrefix`] | `\0\x05hello`: 1, 2, 4 or 8 bytes, big-endian or little-endian | [8 MiB](DEFAULT_MAX_LEN) | [`Bytes`] |
//! | [`Netstring`] | `5:hello,` | 8 MiB | [`Bytes`] |
//! | [`JsonHeader`] | `\x15\0\0\0{"dataBodyLength": 5}hello` | [4 KiB](JsonHeader::DEFAULT_MAX_HEADER), and 8 MiB | [`Bytes`], or a [`JsonBody`] to read in pieces |
//! | `TokioCodec` (feature `tokio-codec`) | any tokio-util codec | none: the limit is an argument | defined by the codec |
//!
//! Implement [`Decoder`] and [`Encoder`] for other formats. A codec works without a stream: it
//! takes messages from a [`BytesMut`], and appends frames to one.
//!
//! # Limits
//!
//! Every codec has a limit. Memory is allocated for received bytes, never for an announced length:
//! at most the longest frame and 8 KiB. A longer frame is a [`FrameError::TooLong`].
//! [`Timeouts`](crate::Timeouts) limit the time that a peer may take.
//!
//! # Errors
//!
//! A timeout loses no bytes: the next read continues the frame. After a malformed frame there are
//! no further messages, except that a codec of lines continues with the next line. In a handler,
//! use `?`: the request ends, and the server's `handle_error` gets the error.
//!
//! # Two directions, two codecs
//!
//! A [`Framed`] that only reads needs a [`Decoder`]; a [`Framed`] that only writes needs an
//! [`Encoder`]. If replies have another format than requests, or come from another thread, create
//! two: one on the [`Connection`](crate::Connection), and one on its
//! [`writer`](crate::Connection::writer).
//!
//! # Suspended connections
//!
//! A read may return bytes of the next message. A handler that suspends its connection keeps these
//! bytes in [`FramedParts`].

mod buffer;
mod codec;
mod error;
mod frame_state;
mod framed;
mod framed_parts;
mod json_body;
mod json_header;
mod length_prefix;
mod lines;
mod netstring;
#[cfg(feature = "tokio-codec")]
mod tokio_codec;

#[doc(no_inline)]
pub use bytes::{Bytes, BytesMut};
#[doc(no_inline)]
pub use serde_json::{Map, Value};

pub use codec::{Decoder, Encoder};
pub use error::FrameError;
pub use framed::{FrameIter, Framed};
pub use framed_parts::FramedParts;
pub use json_body::{JsonBody, JsonBodyWriter};
pub use json_header::JsonHeader;
pub use length_prefix::LengthPrefix;
pub use lines::{Lines, Utf8Lines};
pub use netstring::Netstring;
#[cfg(feature = "tokio-codec")]
pub use tokio_codec::TokioCodec;

/// The default limit of the binary codecs: 8 MiB, as in tokio-util.
pub const DEFAULT_MAX_LEN: usize = 8 * 1024 * 1024;
