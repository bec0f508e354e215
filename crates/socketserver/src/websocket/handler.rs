//! The trait that an application implements for a WebSocket, and its arguments.

use std::fmt;
use std::io;

use super::message::{CloseCode, CloseFrame, CloseReason, Message};
use super::sender::Sender;
use super::session::CloseInitiator;
use crate::{Address, Connection, Result};

/// The handler of one WebSocket, called for each message of the client.
///
/// Between two calls, the connection is [suspended](crate::Connection::suspend_until_readable): it
/// occupies neither a pool thread nor a stack, and a drain ends it at once. A handler that waits
/// within a call occupies both.
///
/// A function `FnMut(&mut WebSocket<'_>, Message) -> Result<()>` implements this trait.
///
/// After an error or a panic, the client receives a close frame with code 1011, and the server's
/// `handle_error` receives the error.
pub trait Handler: Send + 'static {
    /// Called after the opening handshake.
    ///
    /// # Errors
    /// An error ends the connection without a call of `closed`.
    fn opened(&mut self, socket: &mut WebSocket<'_>) -> Result<()> {
        let _ = socket;
        Ok(())
    }

    /// Called for each complete message.
    ///
    /// # Errors
    /// An error ends the connection.
    fn message(&mut self, socket: &mut WebSocket<'_>, message: Message) -> Result<()>;

    /// Called at the end of the WebSocket, when no further message can arrive. Messages sent now
    /// may still reach the client, unless the client has disconnected.
    ///
    /// # Errors
    /// An error is passed to `handle_error`, unless an earlier error was.
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

/// A WebSocket, as the argument of its [`Handler`].
pub struct WebSocket<'a> {
    pub(super) conn: &'a mut Connection,
    pub(super) sender: &'a Sender,
    pub(super) end: &'a mut Option<CloseInitiator>,
    pub(super) protocol: Option<&'static str>,
}

impl WebSocket<'_> {
    /// Sends a message: text for a `String` or `&str`, binary for a `Vec<u8>` or `Bytes`. Waits for
    /// room in the send buffer, like any write.
    ///
    /// # Errors
    /// Returns the errors of a write. Returns [`io::ErrorKind::BrokenPipe`] after the WebSocket was
    /// closed.
    pub fn send(&mut self, message: impl Into<Message>) -> io::Result<()> {
        self.sender().send(message)
    }

    /// Returns a handle that sends messages, for other threads.
    #[must_use]
    pub fn sender(&self) -> Sender {
        self.sender.with(self.conn.writer())
    }

    /// Closes the WebSocket when the current call of the handler returns. Messages sent before
    /// still arrive. The client then receives a close frame and has
    /// [`WebSocketLimits::close_timeout`](super::WebSocketLimits::close_timeout) to confirm it. A
    /// reason longer than 123 bytes is truncated.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        self.end
            .get_or_insert_with(|| CloseInitiator::ByHandler(CloseFrame::new(code, reason)));
    }

    /// Returns the negotiated [subprotocol](super::WebSocketUpgrade::protocols).
    #[must_use]
    pub fn protocol(&self) -> Option<&'static str> {
        self.protocol
    }

    /// Returns the address of the client.
    #[must_use]
    pub fn peer_addr(&self) -> &Address {
        self.conn.peer_addr()
    }

    /// Returns the connection, for inspection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        self.conn
    }

    /// Replaces the timeouts of the connection. A WebSocket can have a longer idle limit than
    /// requests.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::InvalidInput`] if a limit is zero.
    pub fn set_timeouts(&mut self, timeouts: crate::Timeouts) -> io::Result<()> {
        self.conn.set_timeouts(timeouts)
    }
}

impl fmt::Debug for WebSocket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WebSocket").field(&self.conn).finish()
    }
}
