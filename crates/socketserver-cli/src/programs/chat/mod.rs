//! `chat`: sends each message of a client to all clients.
//!
//! This file contains the room and its clients at terminals. `web.rs` contains the clients in
//! browsers, and `page.rs` their page.

mod page;
mod web;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use socketserver::{
    Address, Concurrency, Connection, Displacement, Member, Rate, RequestHandler, Result, Room,
    RoomLimits, ServerGroup,
};

use crate::byte_size::Size;
use crate::cli::{Model, Program, ServerOptions, UsageError};
use crate::console::Console;
use crate::endpoint::Endpoint;
use crate::escape::name_of;
use crate::framing::{Framing, MessageOptions, Messages, is_quit};
use crate::serve::{Handlers, Source, StreamsOnly, bind, need_connections, need_one_process};
use crate::tls;
use web::WebOptions;

/// The time of silence after which a member can be displaced while slots are scarce.
const LISTENING: Duration = Duration::from_secs(60);

/// Send each message of a client to all clients
///
/// All clients, including the sender, receive a message MESSAGE as `IP:PORT MESSAGE`, and in the
/// same order. `quit` or the end of its input ends a connection. The server disconnects a client
/// that does not read once too many messages wait for it; other clients are not delayed. A client
/// that sends faster than --byte-rate or --message-rate is delayed, so that clients that read at
/// that rate stay connected.
///
/// With --web, a page for browsers joins the same room.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    messages: MessageOptions,

    /// Maximum number of messages that wait for a slow client before it is disconnected
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    outbox_messages: u32,

    /// Maximum size of the messages that wait for a slow client before it is disconnected
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    outbox_bytes: Size,

    /// Maximum rate at which one client may send to the room, in bytes per second, with an optional
    /// burst size; its name before each message counts as well. A faster client is delayed ("none"
    /// for no limit)
    #[arg(long, value_name = "SIZE[:BURST]", default_value = "512KiB:256KiB", value_parser = byte_rate)]
    byte_rate: TalkRate,

    /// Maximum rate of messages per second from one client, with an optional burst size ("none" for
    /// no limit)
    #[arg(long, value_name = "N[:BURST]", default_value = "1000:500", value_parser = message_rate)]
    message_rate: TalkRate,

    #[command(flatten)]
    web: WebOptions,

    #[command(flatten)]
    server: ServerOptions,
}

impl Program for Options {
    fn server(&mut self) -> &mut ServerOptions {
        self.server.web.clone_from(&self.web.endpoint);
        // Clients of `tls://` endpoints share the certificates, and offer no ALPN protocol.
        if self
            .web
            .endpoint
            .as_ref()
            .is_some_and(Endpoint::is_encrypted)
        {
            self.server.tls.protocols = tls::HTTP;
        }
        // Members of a chat may listen silently for a long time.
        self.server.displacement = Displacement::new().idle(LISTENING);
        &mut self.server
    }

    fn check(&self) -> anyhow::Result<()> {
        need_connections(&self.server)?;
        need_one_process(&self.server, "the clients of a chat meet in one room")?;
        self.web.check()?;
        if self.server.concurrency == Model::Sequential {
            let why = "a chat needs several clients at a time: use --concurrency threading, pooled \
                       or green";
            return Err(UsageError(why.into()).into());
        }
        Ok(())
    }
}

/// A rate for one client, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TalkRate(Option<Rate>);

fn message_rate(text: &str) -> Result<TalkRate, String> {
    match text {
        "none" => Ok(TalkRate(None)),
        _ => match text.parse() {
            Ok(rate) => Ok(TalkRate(Some(rate))),
            Err(error) => Err(format!("{error}, or none")),
        },
    }
}

fn byte_rate(text: &str) -> Result<TalkRate, String> {
    if text == "none" {
        return Ok(TalkRate(None));
    }
    let size = |text: &str| match text.parse::<Size>() {
        Ok(size) => u32::try_from(size.0).map_err(|_| "a rate is below 4GiB".to_owned()),
        Err(error) => Err(format!("{error}, 512KiB:256KiB with a burst, or none")),
    };
    Ok(TalkRate(Some(match text.split_once(':') {
        None => Rate::per_second(size(text)?),
        Some((rate, burst)) => Rate::per_second(size(rate)?).burst(size(burst)?),
    })))
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let limits = RoomLimits::default()
        .messages(options.outbox_messages as usize)
        .bytes(usize::try_from(options.outbox_bytes.0).unwrap_or(usize::MAX))
        .byte_rate(options.byte_rate.0)
        .message_rate(options.message_rate.0);
    let room = Room::with_limits(limits);
    let framing = options.messages.framing;
    let (closing, counted) = (room.clone(), room.clone());
    let site = options.web.site(&room, framing)?;
    let factory = move || Chat {
        room: room.clone(),
        member: None,
        framing,
        messages: Messages::new(framing),
    };
    let handlers = TerminalAndWeb {
        // A drain reaches all servers, and they share one room.
        terminals: StreamsOnly::new(factory).on_drain(move || closing.close()),
        browsers: StreamsOnly::new(site),
    };
    let mut bound = bind(&options.server, &handlers)?;
    Console::new(&bound)
        .with_note(move || {
            let n = counted.counters();
            let (members, messages, behind) = (n.members, n.messages, n.slow_consumer);
            format!("room: {members} members, {messages} messages, {behind} slow consumers\n")
        })
        .attend(&mut bound)?;
    bound.serve_forever()
}

/// Handlers for terminals and browsers.
struct TerminalAndWeb<T, B> {
    terminals: T,
    browsers: B,
}

impl<T: Handlers, B: Handlers> Handlers for TerminalAndWeb<T, B> {
    fn bind<C: Concurrency>(
        &self,
        options: &ServerOptions,
        model: C,
        source: Source<'_>,
        group: &mut ServerGroup,
    ) -> anyhow::Result<Address> {
        match source {
            Source::Web(..) => self.browsers.bind(options, model, source, group),
            _ => self.terminals.bind(options, model, source, group),
        }
    }
}

/// Sends a message to all members, preceded by the name of its sender.
fn say(member: &Member, name: &str, message: &[u8], framing: Framing) -> Result<()> {
    Ok(member.send([name.as_bytes(), b" ", message, framing.end()].concat())?)
}

struct Chat {
    room: Room,
    member: Option<Member>,
    framing: Framing,
    messages: Messages,
}

impl RequestHandler<Connection> for Chat {
    fn setup(&mut self, conn: &mut Connection) -> Result<()> {
        // A member that only listens has no time limit for its first byte.
        conn.set_timeouts(conn.timeouts().first_byte(None))?;
        self.member = Some(self.room.join(conn)?);
        Ok(())
    }

    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        let (framing, member) = (self.framing, &self.member);
        self.messages.serve(conn, |conn, message| {
            if is_quit(message) {
                return Ok(false);
            }
            let peer = name_of(conn.peer_addr(), conn.id());
            if let Some(member) = member {
                say(member, &peer, message, framing)?;
            }
            Ok(true)
        })
    }

    fn finish(&mut self, _: &mut Connection) -> Result<()> {
        // The server sends the remaining messages before it closes the connection.
        match self.member.take() {
            Some(member) => Ok(member.leave()?),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_sizes_with_or_without_a_burst() {
        let rate = Rate::per_second(512 << 10);
        assert_eq!(byte_rate("512KiB"), Ok(TalkRate(Some(rate))));
        let bursty = rate.burst(256 << 10);
        assert_eq!(byte_rate("512KiB:256KiB"), Ok(TalkRate(Some(bursty))));
        assert_eq!(byte_rate("none"), Ok(TalkRate(None)));
        assert_eq!(message_rate("none"), Ok(TalkRate(None)));
        for bad in ["", "0", "1KiB:", "5GiB", "x"] {
            assert!(byte_rate(bad).is_err(), "{bad}");
            assert!(message_rate(bad).unwrap_err().contains("none"), "{bad}");
        }
    }
}
