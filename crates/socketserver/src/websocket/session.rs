//! One WebSocket on its connection, from the upgrade to the last frame.

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

/// How long a client can go on when the server drains: what it has sent before is heard, but one that
/// never stops does not hold up the end.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

pub(super) struct Session<H> {
    handler: H,
    options: WebSocketUpgrade,
    protocol: Option<&'static str>,
    decoder: Decoder,
    /// From `setup` on.
    sender: Option<Sender>,
    /// When the client was heard last.
    heard: Instant,
    /// It was asked since whether it is there.
    asked: bool,
    /// It was called before.
    has_begun: bool,
    /// When it was seen that the server drains.
    draining: Option<Instant>,
    /// The handler runs, or has panicked.
    in_handler: bool,
    end: Option<CloseInitiator>,
}

/// Why it comes to its end.
#[derive(Clone, Debug)]
pub(super) enum CloseInitiator {
    /// The client has said so, and is to be answered.
    ByPeer(Option<CloseFrame>),
    /// The handler says so, and the client is to answer.
    ByHandler(CloseFrame),
    /// This side says so, and waits for no answer (RFC 6455, 7.1.7).
    Failed(CloseFrame),
    /// There is no more input.
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
            heard: Instant::now(),
            asked: false,
            has_begun: false,
            draining: None,
            in_handler: false,
            end: None,
        }
    }

    fn limits(&self) -> &WebSocketLimits {
        &self.options.limits
    }

    /// Has the handler called.
    fn call(
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

    /// Reads up to where the handler may rest, or to the end.
    fn read_message(&mut self, conn: &mut Connection) -> Result<()> {
        while self.end.is_none() {
            let arrived = self.decoder.read(conn);
            (self.heard, self.asked) = (Instant::now(), false);
            match arrived {
                Ok(Some(Incoming::Message(message))) => {
                    self.call(conn, |handler, socket| handler.message(socket, message))?;
                }
                Ok(Some(Incoming::Ping(payload))) => {
                    self.answer(|sender| sender.pong(payload))?;
                }
                Ok(Some(Incoming::Pong)) => {}
                Ok(Some(Incoming::Close(close))) => self.end = Some(CloseInitiator::ByPeer(close)),
                Ok(None) => self.end = Some(CloseInitiator::Lost),
                Err(DecodeError::Bad(close)) => {
                    conn.ends_as(EndReason::ProtocolError);
                    tracing::debug!(id = %conn.id(), %close, "a client breaks the rules of WebSocket");
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
            // What has begun is waited for here, where it has to keep up a rate.
            if !self.decoder.is_within() {
                break;
            }
        }
        Ok(())
    }

    /// Says what the protocol wants to be said.
    fn answer(&mut self, say: impl FnOnce(&Sender) -> io::Result<()>) -> Result<()> {
        let said = self.sender.as_ref().map_or(Ok(()), say);
        if said.is_err() {
            self.end = Some(CloseInitiator::Lost);
        }
        Ok(said?)
    }

    /// Waits for more without a worker.
    fn rest(&mut self, conn: &mut Connection) {
        // The silence began when the client was last heard, and not when it was last asked or told
        // something.
        let ping = self.options.ping.filter(|_| !self.asked);
        let ask_at = ping.and_then(|after| self.heard.checked_add(after));
        conn.idle_since(self.heard, ask_at);
        conn.suspend_until_readable();
    }

    /// Tells the client, and hears its answer if there is to be one.
    fn part(&mut self, conn: &mut Connection, end: &CloseInitiator) -> io::Result<()> {
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
            // What it has said before it heard of the end is heard by nobody.
            while let Ok(Some(arrived)) = self.decoder.read(conn) {
                if let Incoming::Close(_) = arrived {
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
        self.heard = Instant::now();
        let opened = catch_panic(|| self.call(conn, Handler::opened));
        let cause = match opened {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => HandlerErrorKind::Error(error),
            Err(panic) => panic,
        };
        let _ = self.part(conn, &failed());
        resume(cause)
    }

    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        if conn.take_timer_wakeup() {
            self.asked = true;
            self.answer(Sender::ping)?;
        } else if std::mem::replace(&mut self.has_begun, true) {
            self.read_message(conn)?;
        }
        // The first time there need not be anything to hear yet.
        if conn.server().is_draining() {
            let since = *self.draining.get_or_insert_with(Instant::now);
            if since.elapsed() > DRAIN_GRACE {
                self.end.get_or_insert(CloseInitiator::Lost);
            }
        }
        if self.end.is_none() {
            self.rest(conn);
        }
        Ok(())
    }

    fn finish(&mut self, conn: &mut Connection) -> Result<()> {
        let end = match self.end.take() {
            Some(end) => end,
            None if self.in_handler => failed(),
            // It was not called any more: the client has gone, or was cut, in a pause,
            None if conn.socket().is_disconnected() || conn.socket().is_cancelled() => {
                CloseInitiator::Lost
            }
            // or that came to its end.
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
        let told = catch_panic(|| self.call(conn, |handler, socket| handler.closed(socket, &how)));
        // Whoever does not take the last frame has no use for it.
        let _ = self.part(conn, &end);
        match told {
            Ok(told) => told,
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
