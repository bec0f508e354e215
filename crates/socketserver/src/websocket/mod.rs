//! WebSocket ([RFC 6455](https://www.rfc-editor.org/rfc/rfc6455)): messages in both directions with a
//! browser, or whoever else speaks it, on a connection that began with a request of HTTP.
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
//! | who may open one, and with which limits | [`WebSocketUpgrade`], [`OriginPolicy`], [`WebSocketLimits`] |
//! | what you write | [`Handler`], or a function |
//! | what it is given | [`WebSocket`], and a [`Message`] each time |
//! | sending from elsewhere | [`Sender`], [`Room::join_websocket`](crate::Room::join_websocket) |
//! | how it ends | [`CloseReason`], [`CloseFrame`], [`CloseCode`] |
//!
//! # What it does
//!
//! * It runs under every concurrency model, over TCP, Unix sockets and TLS. A client that says nothing
//!   [costs next to nothing](crate::Connection::suspend_until_readable).
//! * Only pages of the same origin may open one, unless [`OriginPolicy`] says otherwise: browsers send
//!   cookies along with whatever any page opens.
//! * Messages and frames have a greatest length, memory is taken for what has arrived only, and a
//!   message that has begun has to arrive at the connection's
//!   [`receive_rate`](crate::Timeouts::receive_rate).
//! * Whoever breaks the rules is told so: 1002 for frames that are none, 1007 for text that is not
//!   UTF-8, 1008 for silence and slowness, 1009 for messages that are too long.
//! * Pings are answered. If many come while one write waits, the last of them is.
//! * Both sides may end it. The client has [`WebSocketLimits::close_timeout`] to confirm; in a drain it is told
//!   1001, and not waited for.
//! * What the server does by itself never extends a limit on the client: see [`WebSocketUpgrade::ping`].
//!
//! # What it does not
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

/// Lets clients open WebSockets: the limits, who may, and how they are kept. Cheap to clone.
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
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How much of a message is taken.
    #[must_use]
    pub fn limits(mut self, limits: WebSocketLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Whose pages may open one; those of the same origin by default.
    #[must_use]
    pub fn origins(mut self, origins: OriginPolicy) -> Self {
        self.origins = Arc::new(origins);
        self
    }

    /// The protocols within, the best one first (`Sec-WebSocket-Protocol`). A client that asks for
    /// some gets the best of those, or none; none is agreed upon by default.
    #[must_use]
    pub fn protocols(mut self, protocols: &[&'static str]) -> Self {
        self.protocols = protocols.into();
        self
    }

    /// Asks a client that has been silent for so long whether it is there, once in each silence.
    /// Nobody is asked by default.
    ///
    /// An answer is something that the client says, and so begins a new silence: with less than
    /// [`Timeouts::idle`](crate::Timeouts::idle) here, whoever answers stays for as long as he likes.
    /// The question itself extends nothing, and neither does any message that is sent: who does not
    /// answer is ended (1008) when he has been silent for as long as `idle` or `read` allow.
    #[must_use]
    pub fn ping_interval(mut self, after: Option<Duration>) -> Self {
        self.ping = after;
        self
    }

    /// The answer to a request that opens a WebSocket, which `handler` serves from then on.
    ///
    /// # Errors
    /// A [`Problem`](crate::http::Problem) that says what the client is to be answered: 405, 426 or
    /// 400 if the request opens no WebSocket of version 13, and 403 if it comes from a page of
    /// another origin.
    pub fn upgrade(&self, request: &Request<'_>, handler: impl Handler) -> Result<Response> {
        let handshake = handshake::check(request, self)?;
        let session = Session::new(handler, self.clone(), handshake.protocol);
        handshake.answer(session)
    }
}

impl fmt::Debug for WebSocketUpgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSockets")
            .field("limits", &self.limits)
            .field("origins", &self.origins)
            .field("protocols", &self.protocols)
            .field("ping", &self.ping)
            .finish()
    }
}

/// The limits on what a client sends. Whoever exceeds one is told so, and the connection ends.
///
/// | Limit | Default | Bounds | Code |
/// |---|---|---|---|
/// | `message` | 1 MiB | a message | 1009 |
/// | `frame` | 1 MiB | one frame of it | 1009 |
/// | `frames` | 1024 | how many frames it has, and others between them | 1008 |
/// | `close_timeout` | 5 s | from the last frame of this side to the client's | |
///
/// How long a client may be silent, and how slow, is said by [`Timeouts`](crate::Timeouts).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WebSocketLimits {
    /// The longest message, in bytes.
    pub message: usize,
    /// The longest frame, in bytes without its header.
    pub frame: usize,
    /// The most frames, from the first to the last of one message.
    pub frames: usize,
    /// How long the end may take, each way.
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
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the longest message.
    #[must_use]
    pub fn message(mut self, bytes: usize) -> Self {
        self.message = bytes;
        self
    }

    /// Sets the longest frame.
    #[must_use]
    pub fn frame(mut self, bytes: usize) -> Self {
        self.frame = bytes;
        self
    }

    /// Sets how many frames a message may have.
    #[must_use]
    pub fn frames(mut self, count: usize) -> Self {
        self.frames = count;
        self
    }

    /// Sets how long the end may take.
    #[must_use]
    pub fn close_timeout(mut self, time: Duration) -> Self {
        self.close_timeout = time;
        self
    }
}
