//! What an application writes for a WebSocket, and what it is given.

use std::fmt;
use std::io;

use super::message::{CloseCode, CloseFrame, CloseReason, Message};
use super::sender::Sender;
use super::session::CloseInitiator;
use crate::{Address, Connection, Result};

/// Serves one WebSocket: it is called for each message of the client.
///
/// Between two calls the connection waits as one that is
/// [kept alive](crate::Connection::suspend_until_readable): it holds neither a thread of a pool nor a stack, and
/// a drain ends it at once. A handler that waits for something within a call holds both.
///
/// A function `FnMut(&mut WebSocket<'_>, Message) -> Result<()>` is one, too.
///
/// After an error, or a panic, the client is told 1011, and the server's `handle_error` why.
pub trait Handler: Send + 'static {
    /// The client has been let in.
    ///
    /// # Errors
    /// One ends the connection, without `closed`.
    fn opened(&mut self, socket: &mut WebSocket<'_>) -> Result<()> {
        let _ = socket;
        Ok(())
    }

    /// A message has arrived, whole.
    ///
    /// # Errors
    /// One ends the connection.
    fn message(&mut self, socket: &mut WebSocket<'_>, message: Message) -> Result<()>;

    /// It is over: nothing arrives any more. What is sent now may still reach the client, unless it
    /// is gone.
    ///
    /// # Errors
    /// They are told to `handle_error`, if nothing else was.
    fn closed(&mut self, socket: &mut WebSocket<'_>, how: &CloseReason) -> Result<()> {
        let _ = (socket, how);
        Ok(())
    }
}

impl<F> Handler for F
where
    F: FnMut(&mut WebSocket<'_>, Message) -> Result<()> + Send + 'static,
{
    fn message(&mut self, socket: &mut WebSocket<'_>, message: Message) -> Result<()> {
        self(socket, message)
    }
}

/// A WebSocket, as its [`Handler`] is given it.
pub struct WebSocket<'a> {
    pub(super) conn: &'a mut Connection,
    pub(super) sender: &'a Sender,
    pub(super) end: &'a mut Option<CloseInitiator>,
    pub(super) protocol: Option<&'static str>,
}

impl WebSocket<'_> {
    /// Sends a message: text of a `String` or `&str`, bytes of a `Vec<u8>` or `Bytes`. It waits while
    /// there is no room for it, as any write does.
    ///
    /// # Errors
    /// Those of a write; [`io::ErrorKind::BrokenPipe`] once the WebSocket is closed.
    pub fn send(&mut self, message: impl Into<Message>) -> io::Result<()> {
        self.sender().send(message)
    }

    /// A handle that sends, for other threads.
    #[must_use]
    pub fn sender(&self) -> Sender {
        self.sender.with(self.conn.writer())
    }

    /// Ends it when the present call returns: what was sent before arrives, then the client is told,
    /// and has [`WebSocketLimits::close_timeout`](super::WebSocketLimits::close_timeout) to confirm. Of reasons that are
    /// longer than 123 bytes the client gets the beginning.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        self.end
            .get_or_insert_with(|| CloseInitiator::ByHandler(CloseFrame::new(code, reason)));
    }

    /// The protocol within that was [agreed upon](super::WebSockets::protocols).
    #[must_use]
    pub fn protocol(&self) -> Option<&'static str> {
        self.protocol
    }

    /// Who the client is.
    #[must_use]
    pub fn peer_addr(&self) -> &Address {
        self.conn.peer_addr()
    }

    /// The connection, to look at.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        self.conn
    }

    /// The limits on waiting from now on: a WebSocket may be allowed longer silences than requests.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a limit of zero.
    pub fn set_timeouts(&mut self, timeouts: crate::Timeouts) -> io::Result<()> {
        self.conn.set_timeouts(timeouts)
    }
}

impl fmt::Debug for WebSocket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WebSocket").field(&self.conn).finish()
    }
}
