//! Messages out of a stream of bytes.
//!
//! TCP delivers bytes. What one side has sent by three writes, the other may read at once, or in
//! seven pieces: a `read` is no message ("sticky packets"). A *framing* says where a message ends.
//! [`Framed`] puts one on a stream, so that a handler reads and writes messages:
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
//! | Codec | On the wire | Limit, unless set | Message |
//! |---|---|---|---|
//! | [`Lines`] | `hello\n`, `hello\r\n` | [64 KiB](Lines::DEFAULT_MAX_LEN) | [`Bytes`] |
//! | [`Utf8Lines`] | the same in UTF-8 | 64 KiB | `String` |
//! | [`LengthPrefix`] | `\0\x05hello`: 1, 2, 4 or 8 bytes, either end first | [8 MiB](DEFAULT_MAX_LEN) | [`Bytes`] |
//! | [`Netstring`] | `5:hello,` | 8 MiB | [`Bytes`] |
//! | [`JsonHeader`] | `\x15\0\0\0{"dataBodyLength": 5}hello` | [4 KiB](JsonHeader::DEFAULT_MAX_HEADER), and 8 MiB | [`Bytes`], or a [`Body`] to read in pieces |
//! | `TokioCodec` (feature `tokio-codec`) | any codec of tokio-util's kind | none: it is an argument | the codec's own |
//!
//! Others are implementations of [`Decoder`] and [`Encoder`]. A codec needs no stream: it takes
//! messages from a [`BytesMut`], and appends frames to one.
//!
//! # Limits
//!
//! Every codec has one. A peer can announce what it likes; memory is allocated for what has arrived,
//! at most for the longest frame and 8 KiB. A frame that is longer is a [`FrameError::TooLong`].
//! How long a peer may take is not decided here: that is what [`Timeouts`](crate::Timeouts) are for.
//!
//! # Errors
//!
//! A timeout loses nothing: read again, and the frame goes on where it was. After a malformed frame
//! there are no more messages; only lines go on with the next line. In a handler, `?` does what is
//! meant: the request ends, and the server's `handle_error` is told why.
//!
//! # Two directions, two codecs
//!
//! A [`Framed`] that only reads needs a [`Decoder`], one that only writes an [`Encoder`]. Where the
//! replies have another format than the requests, or come from another thread, make two: one on the
//! [`Connection`](crate::Connection), and one on its [`writer`](crate::Connection::writer).
//!
//! # Connections that are kept alive
//!
//! What was read too much belongs to the next message. A handler that returns in between keeps it in
//! [`FramedParts`].

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

/// The longest frame that the binary codecs take unless told otherwise: 8 MiB, as in tokio-util.
pub const DEFAULT_MAX_LEN: usize = 8 * 1024 * 1024;
