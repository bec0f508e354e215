//! One WebSocket on its connection, from the upgrade to the close frame.

use std::io;
use std::time::{Duration, Instant};

use super::decoder::{DecodeError, Decoder, Incoming};
use super::handler::{Handler, WebSocket};
use super::message::{CloseCode, CloseFrame, CloseReason};
use super::sender::Sender;
use super::{WebSocketLimits, WebSocketUpgrade};
use crate::timeouts::earliest;
use crate::user_code::{HandlerErrorKind, catch_panic, resume};
use crate::{Connection, EndReason, RequestHandler, Result};

/// Maximum time for which a client is still served when the server drains. Messages that the client
/// sent before are processed, but a client that never stops does not delay the end.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

pub(super) struct Session<H> {
    handler: H,
    options: WebSocketUpgrade,
    protocol: Option<&'static str>,
    decoder: Decoder,
    /// Set from `setup` on.
    sender: Option<Sender>,
    /// Time of the client's last input.
    last_input: Instant,
    /// True if a ping was sent since the last input.
    ping_sent: bool,
    /// True if `handle` was called before.
    was_called: bool,
    /// Time at which the session noticed that the server drains.
    draining_since: Option<Instant>,
    /// True while the handler runs, and after it has panicked.
    in_handler: bool,
    end: Option<CloseInitiator>,
}

/// The initiator of the closing handshake.
#[derive(Clone, Debug)]
pub(super) enum CloseInitiator {
    /// The client sent a close frame, which the server answers.
    ByPeer(Option<CloseFrame>),
    /// The handler closes the WebSocket; the client answers.
    ByHandler(CloseFrame),
    /// The server closes the WebSocket and does not wait for an answer (RFC 6455, 7.1.7).
    Failed(CloseFrame),
    /// The input ended without a close frame.
    Lost,
}

impl<H: Handler> Session<H> {
    pub fn new(handler: H, options: WebSocketUpgrade, protocol: Option<&'static str>) -> Self {
        Self {
            handler,
            protocol,
            decoder: Decoder::new(options.limits.clone()),
            options,
            sender: None,
            last_input: Instant::now(),
            ping_sent: false,
            was_called: false,
            draining_since: None,
            in_handler: false,
            end: None,
        }
    }

    fn limits(&self) -> &WebSocketLimits {
        &self.options.limits
    }

    /// Calls the handler.
    fn call_handler(
        &mut self,
        conn: &mut Connection,
        call: impl FnOnce(&mut H, &mut WebSocket<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(sender) = &self.sender else {
            return Ok(());
        };
        let mut socket = WebSocket {
            conn,
            sender,
            end: &mut self.end,
            protocol: self.protocol,
        };
        self.in_handler = true;
        let outcome = call(&mut self.handler, &mut socket);
        self.in_handler = false;
        if outcome.is_err() {
            self.end = Some(failed());
        }
        outcome
    }

    /// Reads until the handler can be suspended, or to the end.
    fn read_message(&mut self, conn: &mut Connection) -> Result<()> {
        while self.end.is_none() {
            let decoded = self.decoder.read(conn);
            (self.last_input, self.ping_sent) = (Instant::now(), false);
            match decoded {
                Ok(Some(Incoming::Message(message))) => {
                    self.call_handler(conn, |handler, socket| handler.message(socket, message))?;
                }
                Ok(Some(Incoming::Ping(payload))) => {
                    self.send_control(|sender| sender.pong(payload))?;
                }
                Ok(Some(Incoming::Pong)) => {}
                Ok(Some(Incoming::Close(close))) => self.end = Some(CloseInitiator::ByPeer(close)),
                Ok(None) => self.end = Some(CloseInitiator::Lost),
                Err(DecodeError::Violation(close)) => {
                    conn.ends_as(EndReason::ProtocolError);
                    tracing::debug!(id = %conn.id(), %close, "the client violated the protocol");
                    self.end = Some(CloseInitiator::Failed(close));
                }
                Err(DecodeError::Io(error)) => {
                    self.end = Some(match error.kind() {
                        io::ErrorKind::TimedOut => CloseInitiator::Failed(too_slow()),
                        _ => CloseInitiator::Lost,
                    });
                    return Err(error.into());
                }
            }
            // The rest of a message is awaited here, because the receive rate applies to it.
            if !self.decoder.is_within() {
                break;
            }
        }
        Ok(())
    }

    /// Sends a control frame.
    fn send_control(&mut self, send: impl FnOnce(&Sender) -> io::Result<()>) -> Result<()> {
        let sent = self.sender.as_ref().map_or(Ok(()), send);
        if sent.is_err() {
            self.end = Some(CloseInitiator::Lost);
        }
        Ok(sent?)
    }

    /// Suspends the connection until more input arrives.
    fn suspend(&mut self, conn: &mut Connection) {
        // The idle time counts from the client's last input, not from the last ping or message
        // sent.
        let ping = self.options.ping.filter(|_| !self.ping_sent);
        let ping_at = ping.and_then(|after| self.last_input.checked_add(after));
        conn.idle_since(self.last_input, ping_at);
        conn.suspend_until_readable();
    }

    /// Sends the close frame, and waits for the client's close frame if the handler closed the
    /// WebSocket.
    fn close(&mut self, conn: &mut Connection, end: &CloseInitiator) -> io::Result<()> {
        let time = self.limits().close_timeout;
        let Some(sender) = &self.sender else {
            return Ok(());
        };
        let lost = CloseFrame::new(CloseCode::GOING_AWAY, "");
        let close = match end {
            CloseInitiator::ByPeer(close) => close.as_ref(),
            CloseInitiator::ByHandler(close) | CloseInitiator::Failed(close) => Some(close),
            CloseInitiator::Lost => Some(&lost),
        };
        sender.with(conn.writer()).close(close, time)?;
        if let CloseInitiator::ByHandler(_) = end {
            let until = Instant::now().checked_add(time);
            conn.set_deadline(earliest(conn.deadline(), until));
            // Messages that the client sent before it received the close frame are discarded.
            while let Ok(Some(incoming)) = self.decoder.read(conn) {
                if let Incoming::Close(_) = incoming {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl<H: Handler> RequestHandler<Connection> for Session<H> {
    fn setup(&mut self, conn: &mut Connection) -> Result<()> {
        self.sender = Some(Sender::new(conn.writer()));
        self.last_input = Instant::now();
        let opened = catch_panic(|| self.call_handler(conn, Handler::opened));
        let cause = match opened {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => HandlerErrorKind::Error(error),
            Err(panic) => panic,
        };
        let _ = self.close(conn, &failed());
        resume(cause)
    }

    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        if conn.take_timer_wakeup() {
            self.ping_sent = true;
            self.send_control(Sender::ping)?;
        } else if std::mem::replace(&mut self.was_called, true) {
            self.read_message(conn)?;
        }
        // The first call only suspends, because the client may not have sent anything yet.
        if conn.server().is_draining() {
            let since = *self.draining_since.get_or_insert_with(Instant::now);
            if since.elapsed() > DRAIN_GRACE {
                self.end.get_or_insert(CloseInitiator::Lost);
            }
        }
        if self.end.is_none() {
            self.suspend(conn);
        }
        Ok(())
    }

    fn finish(&mut self, conn: &mut Connection) -> Result<()> {
        let end = match self.end.take() {
            Some(end) => end,
            None if self.in_handler => failed(),
            // The client disconnected, or the server cancelled the connection, while it was
            // suspended.
            None if conn.socket().is_disconnected() || conn.socket().is_cancelled() => {
                CloseInitiator::Lost
            }
            // The suspension reached its time limit.
            None => {
                CloseInitiator::Failed(CloseFrame::new(CloseCode::POLICY, "silent for too long"))
            }
        };
        let how = match &end {
            CloseInitiator::ByPeer(close) => CloseReason::ByPeer(close.clone()),
            CloseInitiator::ByHandler(close) | CloseInitiator::Failed(close) => {
                CloseReason::ByServer(close.clone())
            }
            CloseInitiator::Lost => CloseReason::Lost,
        };
        let outcome =
            catch_panic(|| self.call_handler(conn, |handler, socket| handler.closed(socket, &how)));
        // An error is irrelevant: a client that does not read the close frame does not need it.
        let _ = self.close(conn, &end);
        match outcome {
            Ok(outcome) => outcome,
            Err(panic) => resume(panic),
        }
    }
}

fn failed() -> CloseInitiator {
    CloseInitiator::Failed(CloseFrame::new(CloseCode::FAILED, "the server has failed"))
}

fn too_slow() -> CloseFrame {
    CloseFrame::new(CloseCode::POLICY, "the message takes too long to arrive")
}
