//! Upgrades: a response after which the connection uses another protocol.

use std::fmt;

use ::http::header::{CONNECTION, UPGRADE};
use ::http::{HeaderValue, StatusCode, Version};

use super::head::list;
use super::problem::{Problem, problem};
use super::request_body::RequestBody;
use super::{RequestHead, Response};
use crate::{Connection, RequestHandler, Result};

/// The next protocol of a connection, and its handler.
pub(super) struct Upgrade {
    protocol: HeaderValue,
    pub handler: Box<dyn RequestHandler<Connection>>,
}

impl Response {
    /// Returns a 101 response: the connection continues with another protocol (RFC 9110, 7.8),
    /// which `handler` implements.
    ///
    /// After the response has been sent, the server calls `setup`, `handle` and `finish` of the
    /// handler as for a new connection. The handler may [suspend the
    /// connection](Connection::suspend_until_readable). Bytes that the client sent after its
    /// request are read first. No further HTTP request is served on the connection.
    ///
    /// The client must have requested the protocol, with an `Upgrade` field in an HTTP/1.1 request
    /// without a body. Otherwise the response is a 426 or a 400. For WebSocket, use
    /// `websocket::WebSocketUpgrade` with the feature `websocket`.
    ///
    /// ```
    /// use socketserver::http::{Http, Request, Response};
    /// use socketserver::{Connection, RequestHandler, Result, ThreadingTcpServer};
    /// use std::io::{BufRead, Write};
    ///
    /// struct Shout;
    ///
    /// impl RequestHandler<Connection> for Shout {
    ///     fn handle(&mut self, conn: &mut Connection) -> Result<()> {
    ///         let mut line = String::new();
    ///         while conn.read_line(&mut line)? > 0 {
    ///             conn.write_all(line.to_uppercase().as_bytes())?;
    ///             line.clear();
    ///         }
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let shouting = Http::new().handler_fn(|_: &mut Request<'_>| Response::upgrade("shout", Shout));
    /// let server = ThreadingTcpServer::bind("127.0.0.1:0", shouting)?;
    /// # Ok::<(), socketserver::BoxError>(())
    /// ```
    ///
    /// # Errors
    /// Returns an error if the name of the protocol has characters that a field must not have.
    pub fn upgrade(protocol: &str, handler: impl RequestHandler<Connection>) -> Result<Self> {
        let protocol = HeaderValue::from_str(protocol).map_err(::http::Error::from)?;
        let mut response = Self::new(StatusCode::SWITCHING_PROTOCOLS);
        response.headers.insert(UPGRADE, protocol.clone());
        response.upgrade = Some(Upgrade {
            protocol,
            handler: Box::new(handler),
        });
        Ok(response)
    }
}

impl Upgrade {
    /// Checks that the client requested the protocol (RFC 9110, 7.8), and that no body is left,
    /// because its bytes would be taken for the new protocol.
    pub fn check(&self, head: &RequestHead, incoming: &RequestBody) -> Result<(), Problem> {
        if !head.asks_for(self.protocol.as_bytes()) {
            let why = "this is there for who asks for it by Upgrade";
            let problem = problem(StatusCode::UPGRADE_REQUIRED, why);
            return Err(problem.header(UPGRADE, self.protocol.clone()));
        }
        if !incoming.is_done() {
            return Err(super::problem::bad("an upgrade has no body"));
        }
        Ok(())
    }
}

impl RequestHead {
    /// Returns true if the client requests this protocol. HTTP/1.0 has no upgrades (RFC 9110, 7.8).
    pub(crate) fn asks_for(&self, protocol: &[u8]) -> bool {
        let headers = self.headers();
        self.version() == Version::HTTP_11
            && list(headers, CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"))
            && list(headers, UPGRADE).any(|asked| asked.as_bytes().eq_ignore_ascii_case(protocol))
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upgrade").field(&self.protocol).finish()
    }
}
