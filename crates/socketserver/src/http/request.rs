//! What a handler is given: the head of a request, and its body to be read.

use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Deref;

use ::http::HeaderMap;

use super::RequestHead;
use super::request_body::RequestBody;
use crate::{Address, Connection};

/// A request, as a [`Handler`](super::Handler) is given it.
///
/// It is a [`RequestHead`] with all that has: `method`, `path`, `query`, `headers`, ... and a
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

    /// The connection that it came by, to look at: its number, whether the server drains, what a
    /// proxy has said of the client.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        self.conn
    }

    /// Who the client is.
    #[must_use]
    pub fn peer_addr(&self) -> &Address {
        self.conn.peer_addr()
    }

    /// The body. A request without one has one that is empty.
    ///
    /// A client that waits for `100 Continue` is sent that by the first read. What the handler leaves
    /// of it is thrown away, or the connection is closed if it is much.
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

    /// How long the rest of the body is, if the client has told.
    #[must_use]
    pub fn body_len(&self) -> Option<u64> {
        self.incoming.length()
    }

    /// Takes a longer or a shorter body than [`HttpLimits::body`](super::HttpLimits::body) allows: so many
    /// bytes from here on. To be said before it is read.
    pub fn limit_body(&mut self, bytes: u64) {
        self.incoming.limit(bytes);
    }

    /// The fields behind a chunked body, once it was read to its end.
    ///
    /// They are the client's word like all else, and come too late for whoever forwards: nothing
    /// should be decided by them that a header decides (RFC 9110, 6.5.1).
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
/// Its errors are those of the connection, and such that have a [`Problem`](super::Problem) in them:
/// a body that is too long (413), malformed or cut short (400), or too slow (408). A handler that
/// returns one has the client answered with it.
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
