//! The room for browsers: a page, and the WebSocket that the page opens.
//!
//! A WebSocket message is sent to all members, like a chunk from a connection. The first message to
//! a browser comes from the server: a space, and the browser's name in the room.

use std::io;

use bytes::{Bytes, BytesMut};
use clap::Args;
use socketserver::framing::{Decoder, Lines};
use socketserver::http::{
    Handler, Http, HttpHandler, HttpLimits, Method, Problem, Request, Response, StatusCode,
};
use socketserver::websocket::{
    self, CloseCode, CloseReason, Message, OriginPolicy, WebSocket, WebSocketUpgrade,
};
use socketserver::{Member, Result, Room};

use super::page::Page;
use super::say;
use crate::cli::{TimeoutArg, UsageError, limit};
use crate::endpoint::{self, Endpoint};
use crate::escape::name_of;
use crate::framing::{Framing, is_quit};

#[derive(Debug, Args)]
#[command(next_help_heading = "Browsers")]
pub(super) struct WebOptions {
    /// URL at which browsers join: http://HOST:PORT, or https://HOST:PORT with the certificates of
    /// tls:// endpoints
    #[arg(long = "web", value_name = "URL", value_parser = endpoint::web)]
    pub endpoint: Option<Endpoint>,

    /// Origins whose pages may open the WebSocket, such as https://chat.example.org [default: the
    /// origin of the served page]; may be given several times ("any" for all)
    #[arg(long = "web-origin", value_name = "ORIGIN")]
    origins: Vec<String>,

    /// Time of silence after which the server sends a ping to a browser. A browser that answers
    /// stays connected, regardless of --idle-timeout ("none" for no pings)
    #[arg(long = "web-ping", value_name = "DURATION", default_value = "1m", value_parser = limit)]
    ping: TimeoutArg,
}

impl WebOptions {
    pub fn check(&self) -> Result<(), UsageError> {
        if self.endpoint.is_none() && !self.origins.is_empty() {
            let why = "--web-origin is given without a page: use --web http://HOST:PORT";
            return Err(UsageError(why.into()));
        }
        self.origins().map(drop)
    }

    fn origins(&self) -> Result<OriginPolicy, UsageError> {
        match &*self.origins {
            [] => Ok(OriginPolicy::same_origin()),
            [any] if any == "any" => Ok(OriginPolicy::any()),
            some => OriginPolicy::allow(some)
                .map_err(|error| UsageError(format!("--web-origin: {error}"))),
        }
    }

    /// Returns the site that serves browsers.
    pub fn site(
        &self,
        room: &Room,
        framing: Framing,
    ) -> Result<impl Fn() -> HttpHandler<Site> + Clone + Send + Sync + 'static, UsageError> {
        let longest = framing.longest();
        let limits = websocket::WebSocketLimits::default()
            .message(longest)
            .frame(longest);
        let sockets = WebSocketUpgrade::new()
            .limits(limits)
            .origins(self.origins()?)
            .ping_interval(self.ping.0);
        let site = Site {
            room: room.clone(),
            framing,
            sockets,
            page: Page::new(longest),
        };
        Ok(Http::new()
            .limits(HttpLimits::default().body(0))
            .handler(move || site.clone()))
    }
}

#[derive(Clone)]
pub(super) struct Site {
    room: Room,
    framing: Framing,
    sockets: WebSocketUpgrade,
    page: Page,
}

impl Handler for Site {
    fn methods(&self) -> &[Method] {
        &[Method::GET]
    }

    fn get(&mut self, request: &mut Request<'_>) -> Result<Response> {
        match request.path() {
            "/" => self.page.answer(),
            "/ws" => {
                let browser = Browser {
                    room: self.room.clone(),
                    member: None,
                    framing: self.framing,
                };
                self.sockets.upgrade(request, browser)
            }
            _ => Err(Problem::new(StatusCode::NOT_FOUND, "the chat is at /").into()),
        }
    }
}

/// A member of the room with a WebSocket.
struct Browser {
    room: Room,
    member: Option<Member>,
    framing: Framing,
}

impl websocket::Handler for Browser {
    fn opened(&mut self, socket: &mut WebSocket<'_>) -> Result<()> {
        let name = name_of(socket.peer_addr(), socket.connection().id());
        socket.send(format!(" {name}"))?;
        match self.room.join_websocket(socket) {
            Ok(member) => self.member = Some(member),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                socket.close(CloseCode::GOING_AWAY, "the room is closed");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn message(&mut self, socket: &mut WebSocket<'_>, message: Message) -> Result<()> {
        let Some(member) = &self.member else {
            return Ok(());
        };
        for message in messages(self.framing, message.as_bytes())? {
            if is_quit(&message) {
                socket.close(CloseCode::NORMAL, "goodbye");
                break;
            }
            let name = name_of(socket.peer_addr(), socket.connection().id());
            say(member, &name, &message, self.framing)?;
        }
        Ok(())
    }

    fn closed(&mut self, _: &mut WebSocket<'_>, _: &CloseReason) -> Result<()> {
        // The server sends the remaining messages before it closes the WebSocket.
        match self.member.take() {
            Some(member) => Ok(member.leave()?),
            None => Ok(()),
        }
    }
}

/// Splits a message from a browser into messages of the room. In a room of lines, a message with
/// several lines could otherwise imitate other members.
fn messages(framing: Framing, bytes: &[u8]) -> Result<Vec<Bytes>> {
    let mut all = Vec::new();
    match framing {
        Framing::Chunks if bytes.is_empty() => {}
        Framing::Chunks => all.push(Bytes::copy_from_slice(bytes)),
        Framing::Lines => {
            let (mut lines, mut rest) = (Lines::default(), BytesMut::from(bytes));
            while let Some(line) = lines.decode(&mut rest)? {
                all.push(line);
            }
            all.extend(lines.decode_eof(&mut rest)?);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_splits_lines_with_framing_lines() {
        let of = |framing, text: &str| messages(framing, text.as_bytes()).unwrap();
        assert_eq!(of(Framing::Chunks, "a\nb\n"), ["a\nb\n"]);
        assert_eq!(of(Framing::Lines, "a\r\nb"), ["a", "b"]);
        assert_eq!(of(Framing::Lines, "a\n"), ["a"]);
        assert!(of(Framing::Chunks, "").is_empty());
    }
}
