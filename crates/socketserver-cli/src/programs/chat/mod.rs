//! `chat`: what anybody says, everybody hears.
//!
//! Here is the room, and those who are in it by a terminal. Those who are in it by a browser are in
//! `web.rs`, and what these see in `page.rs`.

mod page;
mod web;

use std::process::ExitCode;

use clap::Args;
use socketserver::{
    Address, Concurrency, Connection, Member, RequestHandler, Result, Room, RoomLimits, ServerGroup,
};

use crate::cli::{Model, Program, ServerOptions, Usage};
use crate::console::Console;
use crate::endpoint::Endpoint;
use crate::messages::{Framing, MessageOptions, Messages, is_quit};
use crate::serve::{Handlers, Source, Streams, bind, need_connections, need_one_process};
use crate::size::Size;
use crate::text::name_of;
use crate::tls;
use web::WebOptions;

/// Pass on what each client says to all of them
///
/// A message MESSAGE reaches everybody, its sender included, as `IP:PORT MESSAGE`, and in the same
/// order. `quit` or the end of its input ends a connection. Clients that do not read are cut when
/// too much waits for them; nobody waits for them.
///
/// With --web, a page for browsers is the same room.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    messages: MessageOptions,

    /// How many messages may wait for a client that does not read, before it is cut
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    outbox_messages: u32,

    /// How many bytes of messages may wait for such a client, before it is cut
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    outbox_bytes: Size,

    #[command(flatten)]
    web: WebOptions,

    #[command(flatten)]
    server: ServerOptions,
}

impl Program for Options {
    fn server(&mut self) -> &mut ServerOptions {
        self.server.web.clone_from(&self.web.endpoint);
        // Clients of tls:// endpoints share the certificates, and offer nothing.
        if self
            .web
            .endpoint
            .as_ref()
            .is_some_and(Endpoint::is_encrypted)
        {
            self.server.tls.protocols = tls::HTTP;
        }
        &mut self.server
    }

    fn check(&self) -> anyhow::Result<()> {
        need_connections(&self.server)?;
        need_one_process(&self.server, "the clients of a chat meet in one room")?;
        self.web.check()?;
        if self.server.concurrency == Model::Sequential {
            let why = "a chat with one client at a time is none: use --concurrency threading, pooled \
                       or green";
            return Err(Usage(why.into()).into());
        }
        Ok(())
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let limits = RoomLimits::default()
        .messages(options.outbox_messages as usize)
        .bytes(usize::try_from(options.outbox_bytes.0).unwrap_or(usize::MAX));
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
    let handlers = Both {
        // A drain reaches all servers, and it is one room.
        terminals: Streams::new(factory).on_drain(move || closing.close()),
        browsers: Streams::new(site),
    };
    let mut bound = bind(&options.server, &handlers)?;
    Console::new(&bound)
        .with_note(move || {
            let n = counted.counters();
            let (members, messages, behind) = (n.members, n.messages, n.fell_behind);
            format!("room: {members} members, {messages} messages, {behind} fell behind\n")
        })
        .attend(&mut bound)?;
    bound.serve_forever()
}

/// Terminals and browsers.
struct Both<T, B> {
    terminals: T,
    browsers: B,
}

impl<T: Handlers, B: Handlers> Handlers for Both<T, B> {
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

/// Passes a message on to all, under the name of who has sent it.
fn say(member: &Member, name: &str, message: &[u8], framing: Framing) -> Result {
    Ok(member.send([name.as_bytes(), b" ", message, framing.end()].concat())?)
}

struct Chat {
    room: Room,
    member: Option<Member>,
    framing: Framing,
    messages: Messages,
}

impl RequestHandler<Connection> for Chat {
    fn setup(&mut self, conn: &mut Connection) -> Result {
        // Whoever listens takes part.
        conn.set_timeouts(conn.timeouts().first_byte(None))?;
        self.member = Some(self.room.join(conn)?);
        Ok(())
    }

    fn handle(&mut self, conn: &mut Connection) -> Result {
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

    fn finish(&mut self, _: &mut Connection) -> Result {
        // What was said before it left is still heard.
        match self.member.take() {
            Some(member) => Ok(member.leave()?),
            None => Ok(()),
        }
    }
}
