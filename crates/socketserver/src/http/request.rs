//! The input of a handler: the head of a request, and its body to be read.

use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Deref;

use ::http::HeaderMap;

use super::RequestHead;
use super::request_body::RequestBody;
use crate::{Address, Connection};

/// A request for a [`Handler`](super::Handler).
///
/// It dereferences to its [`RequestHead`] (`method`, `path`, `query`, `headers`, ...) and has a
/// [`body`](Self::body).
pub struct Request<'a> {
    head: &'a RequestHead,
    incoming: &'a mut RequestBody,
    conn: &'a mut Connection,
}

impl<'a> Request<'a> {
    pub(super) fn new(
        head: &'a RequestHead,
        incoming: &'a mut RequestBody,
        conn: &'a mut Connection,
    ) -> Self {
        Self {
            head,
            incoming,
            conn,
        }
    }

    /// Returns the connection of the request, for inspection: its number, whether the server
    /// drains, and the data of a PROXY header.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        self.conn
    }

    /// Returns the address of the client.
    #[must_use]
    pub fn peer_addr(&self) -> &Address {
        self.conn.peer_addr()
    }

    /// Returns the body. A request without a body has an empty one.
    ///
    /// If the client waits for `100 Continue`, the first read sends it. The rest that the handler
    /// does not read is discarded. If the rest is long, the connection is closed instead.
    ///
    /// ```
    /// use socketserver::http::{Request, Response};
    /// use std::io::Read;
    ///
    /// fn respond(request: &mut Request<'_>) -> socketserver::Result<Response> {
    ///     let mut text = String::new();
    ///     request.body().read_to_string(&mut text)?;
    ///     Ok(Response::text(text.to_uppercase()))
    /// }
    /// ```
    pub fn body(&mut self) -> Body<'_> {
        Body {
            incoming: self.incoming,
            conn: self.conn,
        }
    }

    /// Returns the length of the rest of the body, if the client has sent it.
    #[must_use]
    pub fn body_len(&self) -> Option<u64> {
        self.incoming.length()
    }

    /// Replaces [`HttpLimits::body`](super::HttpLimits::body) for this request: at most `bytes`
    /// bytes from here on. Call this method before the body is read.
    pub fn limit_body(&mut self, bytes: u64) {
        self.incoming.limit(bytes);
    }

    /// Returns the trailer fields of a chunked body, once it has been read to its end.
    ///
    /// The client chooses trailers, and they arrive too late for a proxy. Do not use them for a
    /// decision that belongs to a header field (RFC 9110, 6.5.1).
    #[must_use]
    pub fn trailers(&self) -> &HeaderMap {
        self.incoming.trailers()
    }
}

impl Deref for Request<'_> {
    type Target = RequestHead;

    fn deref(&self) -> &RequestHead {
        self.head
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("head", self.head)
            .field("peer", self.conn.peer_addr())
            .finish_non_exhaustive()
    }
}

/// The body of a request, read as it arrives.
///
/// A read returns an error of the connection, or an error with a [`Problem`](super::Problem): a
/// body that is too long (413), malformed or incomplete (400), or too slow (408). If a handler
/// returns such an error, the client receives it as the response.
pub struct Body<'a> {
    incoming: &'a mut RequestBody,
    conn: &'a mut Connection,
}

impl Read for Body<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.incoming.check_length()?;
        if buf.is_empty() || self.incoming.is_done() {
            return Ok(0);
        }
        if self.incoming.take_awaited() {
            self.conn.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        self.conn.begin_message();
        let read = self.incoming.read(self.conn, buf);
        if self.incoming.is_done() {
            self.conn.end_message();
        }
        read
    }
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Body").field(&self.incoming).finish()
    }
}
