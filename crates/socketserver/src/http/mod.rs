//! HTTP/1.1: a handler responds to requests, on every stream transport and under every concurrency
//! model.
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
//! | the application's code | [`Handler`], with a method for each HTTP method; or a function, [`Http::handler_fn`] |
//! | its input | [`Request`]: a [`RequestHead`], and a [`Body`] to read |
//! | its result | [`Response`]: bytes, a reader, a stream, a file, [another protocol](Response::upgrade); or a [`Problem`] |
//! | the server's settings | [`Http`]: [`HttpLimits`], error pages, an [access log](Http::on_response) |
//! | the wire format alone | [`RequestHead::parse`], [`RequestHead::read`], [`ChunkedReader`] |
//!
//! The module re-exports types of the `http` crate: [`Method`], [`StatusCode`], [`HeaderMap`], ...
//!
//! # Supported
//!
//! * HTTP/1.0 and 1.1. A connection stays open as long as its client wants; an idle connection
//!   [costs next to nothing](crate::Connection::suspend_until_readable). Pipelined requests are
//!   served in their order.
//! * Bodies with a length or in chunks, read as they arrive. `100 Continue` is sent to clients that
//!   wait for it.
//! * Every part of a request has a limit, in size and in time: see [`HttpLimits`] and
//!   [`Timeouts`](crate::Timeouts). Memory is allocated for received bytes only.
//! * Ambiguous requests are rejected, to prevent request smuggling (RFC 9112, 11.2): both a length
//!   and a transfer coding, several lengths, anything but CRLF at the end of a line, folded fields,
//!   spaces before a colon, codings other than `chunked`.
//! * An error before the response has begun becomes a 500. A later error resets the connection, so
//!   that the client does not take a partial response for a complete one. On a Unix socket with
//!   HTTP/1.0 the client cannot see the difference.
//! * During a drain, and while the server is a [lame duck](crate::ServerHandle::set_lame),
//!   responses contain `Connection: close`. A drain closes idle connections at once, if no byte has
//!   arrived on them.
//!
//! # Not supported
//!
//! HTTP/2, tunnels (`CONNECT`), compression, routing, and a client.

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
