//! HTTP/1.1 on connections: a handler answers requests, on every transport that has connections and
//! under every concurrency model.
//!
//! ```no_run
//! use socketserver::http::{Http, Request, Response};
//! use socketserver::{Result, ThreadingTcpServer};
//!
//! fn main() -> Result<()> {
//!     let hello = Http::new().handler_fn(|request: &mut Request<'_>| {
//!         Ok(Response::text(format!("you have asked for {}\n", request.path())))
//!     });
//!     ThreadingTcpServer::bind("127.0.0.1:8000", hello)?.serve_forever()?;
//!     Ok(())
//! }
//! ```
//!
//! # Layout
//!
//! | Concern | Where |
//! |---|---|
//! | what you write | [`Handler`], a method for each of HTTP's; or a function, [`Http::handler_fn`] |
//! | what it is given | [`Request`]: a [`RequestHead`], and a [`Body`] to read |
//! | what it returns | [`Response`]: bytes, a reader, a stream, a file, [another protocol](Response::upgrade); or a [`Problem`] |
//! | the server's part | [`Http`]: [`HttpLimits`], error pages, an [access log](Http::on_response) |
//! | the wire alone | [`RequestHead::parse`], [`RequestHead::read`], [`ChunkedReader`] |
//!
//! The types of the `http` crate are here again: [`Method`], [`StatusCode`], [`HeaderMap`], ...
//!
//! # What it does
//!
//! * HTTP/1.0 and 1.1; a connection stays for as long as its client wants it to, and one that is idle
//!   [costs next to nothing](crate::Connection::suspend_until_readable). Requests that are sent without waiting
//!   are answered in their order.
//! * Bodies with a length or in chunks, read as they arrive; `100 Continue` for who waits for it.
//! * Every part of a request has a limit, in size and in time: see [`HttpLimits`] and
//!   [`Timeouts`](crate::Timeouts). Memory is taken for what has arrived only.
//! * A request with two readings is refused, so that nobody hides one in another one's body
//!   (RFC 9112, 11.2): both a length and a transfer coding, several lengths, anything but CRLF at the
//!   end of a line, folded fields, spaces before a colon, codings other than `chunked`.
//! * A failure before the answer has begun is a 500. One after that cuts the connection, so that the
//!   client does not take a part for all; over a Unix socket under HTTP/1.0 it cannot be told.
//! * In a drain, and while the server is [lame](crate::ServerHandle::set_lame), answers say
//!   `Connection: close`. A drain ends idle connections at once, if nothing has arrived on them.
//!
//! # What it does not
//!
//! No HTTP/2, no tunnels (`CONNECT`), no compression, no routing, no client.

mod body_length;
mod chunk_extension;
mod chunked;
mod conditional;
mod connection;
mod file;
mod handler;
mod head;
mod head_scanner;
mod limits;
mod problem;
mod range;
mod request;
mod request_body;
mod request_target;
mod response;
mod response_writer;
mod upgrade;

#[doc(no_inline)]
pub use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
#[doc(no_inline)]
pub use bytes::Bytes;

pub use chunked::ChunkedReader;
pub use connection::{Http, HttpHandler, RequestLog};
pub use handler::{Handler, HandlerFn};
pub use head::RequestHead;
pub use limits::HttpLimits;
pub use problem::Problem;
pub use request::{Body, Request};
pub use response::Response;
