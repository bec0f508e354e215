//! Leaving HTTP: a response after which the connection speaks another protocol.

use std::fmt;

use ::http::header::{CONNECTION, UPGRADE};
use ::http::{HeaderValue, StatusCode, Version};

use super::head::list;
use super::problem::{Problem, problem};
use super::request_body::RequestBody;
use super::{RequestHead, Response};
use crate::{Connection, RequestHandler, Result};

/// What a connection goes on with.
pub(super) struct Upgrade {
    protocol: HeaderValue,
    pub handler: Box<dyn RequestHandler<Connection>>,
}

impl Response {
    /// 101: the connection goes on with another protocol (RFC 9110, 7.8), which `handler` speaks.
    ///
    /// Once the client has been told, the handler has the connection, with `setup`, `handle` and
    /// `finish` as if it had been the server's from the start; it may
    /// [keep it alive](Connection::suspend_until_readable). What the client has sent behind its request is what it
    /// reads first. No further request is served on the connection.
    ///
    /// The client must have asked for the protocol, by `Upgrade` in a request of HTTP/1.1 without a
    /// body; otherwise it is answered with 426 or 400 instead. WebSockets have
    /// `websocket::WebSocketUpgrade` for all this, with the feature of that name.
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
    /// If the name of the protocol has characters that a field may not have.
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
    /// A protocol that the client has not asked for it would not understand (RFC 9110, 7.8), and
    /// what is left of a body would be taken for it.
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
    /// Whether it asks for another protocol. HTTP/1.0 has no such thing (RFC 9110, 7.8).
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
