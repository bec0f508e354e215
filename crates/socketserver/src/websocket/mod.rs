//! WebSocket ([RFC 6455](https://www.rfc-editor.org/rfc/rfc6455)): messages in both directions with
//! a browser or another client, on a connection that began with an HTTP request.
//!
//! ```no_run
//! use socketserver::http::{Http, Request, Response};
//! use socketserver::websocket::{Message, WebSocket, WebSocketUpgrade};
//! use socketserver::{Result, ThreadingTcpServer};
//!
//! fn main() -> Result<()> {
//!     let sockets = WebSocketUpgrade::new();
//!     let site = Http::new().handler_fn(move |request: &mut Request<'_>| match request.path() {
//!         "/echo" => sockets.upgrade(request, |socket: &mut WebSocket<'_>, message: Message| {
//!             Ok(socket.send(message)?)
//!         }),
//!         _ => Ok(Response::text("there is a WebSocket at /echo\n")),
//!     });
//!     ThreadingTcpServer::bind("127.0.0.1:8000", site)?.serve_forever()?;
//!     Ok(())
//! }
//! ```
//!
//! # Layout
//!
//! | Concern | Where |
//! |---|---|
//! | permitted origins, limits | [`WebSocketUpgrade`], [`OriginPolicy`], [`WebSocketLimits`] |
//! | your code | [`Handler`], or a function |
//! | the arguments of your code | [`WebSocket`] and [`Message`] |
//! | sending from elsewhere | [`Sender`], [`Room::join_websocket`](crate::Room::join_websocket) |
//! | the end of a WebSocket | [`CloseReason`], [`CloseFrame`], [`CloseCode`] |
//!
//! # Behaviour
//!
//! * WebSockets work under every concurrency model, over TCP, Unix sockets and TLS. A silent client
//!   is [suspended](crate::Connection::suspend_until_readable) and costs very little memory.
//! * By default, only pages of the same origin may open a WebSocket, because browsers send cookies
//!   with requests of any page. Set [`OriginPolicy`] to change this.
//! * Messages and frames have a maximum length. Memory is allocated for received bytes only. A
//!   message that has begun must arrive at the connection's
//!   [`receive_rate`](crate::Timeouts::receive_rate).
//! * A client that violates the protocol receives a close code. The codes are 1002 for invalid
//!   frames, 1007 for text that is not UTF-8, 1008 for exceeded time limits, and 1009 for long
//!   messages.
//! * The server answers pings. If several pings arrive during one write, only the last is answered.
//! * Both sides can close a WebSocket. The client has [`WebSocketLimits::close_timeout`] to
//!   confirm. In a drain, the client receives code 1001, and the server does not wait for a
//!   confirmation.
//! * Frames that the server sends by itself never extend a time limit of the client: see
//!   [`WebSocketUpgrade::ping_interval`].
//!
//! # Limitations
//!
//! No compression, no extensions, no HTTP/2, no client.

mod decoder;
mod handler;
mod handshake;
mod message;
mod origin;
mod sender;
mod session;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[doc(no_inline)]
pub use bytes::Bytes;

pub use handler::{Handler, WebSocket};
pub use message::{CloseCode, CloseFrame, CloseReason, Message};
pub use origin::{OriginPolicy, ParseOriginError};
pub use sender::Sender;

use crate::Result;
use crate::http::{Request, Response};
use session::Session;

/// The WebSocket endpoint of a server: limits, permitted origins, subprotocols and pings. Cheap to
/// clone.
///
/// ```
/// use socketserver::http::{Http, Request};
/// use socketserver::websocket::{CloseCode, WebSocketLimits, Message, WebSocket, WebSocketUpgrade};
/// use socketserver::ThreadingTcpServer;
/// use std::io::{Read, Write};
/// use std::net::TcpStream;
///
/// let sockets = WebSocketUpgrade::new().limits(WebSocketLimits::new().message(1000));
/// let site = Http::new().handler_fn(move |request: &mut Request<'_>| {
///     sockets.upgrade(request, |socket: &mut WebSocket<'_>, message: Message| {
///         match message.as_text() {
///             Some("bye") => socket.close(CloseCode::NORMAL, "goodbye"),
///             _ => socket.send(message)?,
///         }
///         Ok(())
///     })
/// });
/// let mut server = ThreadingTcpServer::bind("127.0.0.1:0", site)?;
/// let address = server.local_addr().as_inet().unwrap();
/// # let handle = server.handle();
/// std::thread::spawn(move || server.serve_forever());
///
/// // A client that has the frame for "bye" ready: a browser would make it.
/// let mut client = TcpStream::connect(address)?;
/// client.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\n\
///     Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
///     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81\x83\0\0\0\0bye")?;
/// client.write_all(b"\x88\x80\0\0\0\0")?;
/// let mut answer = Vec::new();
/// client.read_to_end(&mut answer)?;
/// assert!(answer.starts_with(b"HTTP/1.1 101 "));
/// assert!(answer.ends_with(b"\x88\x09\x03\xe8goodbye"));
/// # handle.shutdown();
/// # Ok::<(), socketserver::BoxError>(())
/// ```
#[derive(Clone, Default)]
pub struct WebSocketUpgrade {
    limits: WebSocketLimits,
    origins: Arc<OriginPolicy>,
    protocols: Arc<[&'static str]>,
    ping: Option<Duration>,
}

impl WebSocketUpgrade {
    /// Creates an endpoint with the default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the limits on messages. Defaults to [`WebSocketLimits::default`].
    #[must_use]
    pub fn limits(mut self, limits: WebSocketLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the origins whose pages may open a WebSocket. Defaults to the same origin.
    #[must_use]
    pub fn origins(mut self, origins: OriginPolicy) -> Self {
        self.origins = Arc::new(origins);
        self
    }

    /// Sets the supported subprotocols, in order of preference (`Sec-WebSocket-Protocol`). The
    /// server selects the first of them that the client offers, or none. Defaults to none.
    #[must_use]
    pub fn protocols(mut self, protocols: &[&'static str]) -> Self {
        self.protocols = protocols.into();
        self
    }

    /// Sends one ping to a client that has been silent for this time. Defaults to `None`: no pings.
    ///
    /// The client's answer counts as input and begins a new silence. With an interval shorter than
    /// [`Timeouts::idle`](crate::Timeouts::idle), a client that answers can stay connected
    /// indefinitely. The ping itself and other sent messages extend no limit. A client that does
    /// not answer is closed (1008) when its silence exceeds `idle` or `read`.
    #[must_use]
    pub fn ping_interval(mut self, after: Option<Duration>) -> Self {
        self.ping = after;
        self
    }

    /// Returns the response to a request that opens a WebSocket. `handler` then serves the
    /// connection.
    ///
    /// # Errors
    /// Returns a [`Problem`](crate::http::Problem) for the client. Its status is 405, 426 or 400 if
    /// the request does not open a WebSocket of version 13. It is 403 if the request comes from a
    /// page of another origin.
    pub fn upgrade(&self, request: &Request<'_>, handler: impl Handler) -> Result<Response> {
        let handshake = handshake::check(request, self)?;
        let session = Session::new(handler, self.clone(), handshake.protocol);
        handshake.answer(session)
    }
}

impl fmt::Debug for WebSocketUpgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketUpgrade")
            .field("limits", &self.limits)
            .field("origins", &self.origins)
            .field("protocols", &self.protocols)
            .field("ping", &self.ping)
            .finish()
    }
}

/// The limits on messages of a client. A client that exceeds a limit receives a close frame, and
/// the connection ends.
///
/// | Limit | Default | Bounds | Code |
/// |---|---|---|---|
/// | `message` | 1 MiB | length of a message | 1009 |
/// | `frame` | 1 MiB | length of one frame | 1009 |
/// | `frames` | 1024 | number of frames of a message, with control frames between them | 1008 |
/// | `close_timeout` | 5 s | from the server's close frame to the client's | |
///
/// [`Timeouts`](crate::Timeouts) limit idle time and minimum rates.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WebSocketLimits {
    /// The maximum length of a message, in bytes.
    pub message: usize,
    /// The maximum length of a frame, in bytes without its header.
    pub frame: usize,
    /// The maximum number of frames from the first to the last frame of one message.
    pub frames: usize,
    /// The time limit of the closing handshake, for each direction.
    pub close_timeout: Duration,
}

impl Default for WebSocketLimits {
    fn default() -> Self {
        Self {
            message: 1 << 20,
            frame: 1 << 20,
            frames: 1024,
            close_timeout: Duration::from_secs(5),
        }
    }
}

impl WebSocketLimits {
    /// Creates the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum length of a message, in bytes. Defaults to 1 MiB.
    #[must_use]
    pub fn message(mut self, bytes: usize) -> Self {
        self.message = bytes;
        self
    }

    /// Sets the maximum length of a frame, in bytes. Defaults to 1 MiB.
    #[must_use]
    pub fn frame(mut self, bytes: usize) -> Self {
        self.frame = bytes;
        self
    }

    /// Sets the maximum number of frames of a message. Defaults to 1024.
    #[must_use]
    pub fn frames(mut self, count: usize) -> Self {
        self.frames = count;
        self
    }

    /// Sets the time limit of the closing handshake. Defaults to 5 s.
    #[must_use]
    pub fn close_timeout(mut self, time: Duration) -> Self {
        self.close_timeout = time;
        self
    }
}
