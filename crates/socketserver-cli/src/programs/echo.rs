//! `echo`: sends each message back, preceded by the client's address.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use socketserver::{Connection, Datagram, RequestHandler, Result};

use crate::cli::{Program, ServerOptions};
use crate::escape::{excerpt, name_of};
use crate::framing::{Framing, MessageOptions, Messages, is_quit};
use crate::serve::{AnyTransport, serve};

/// Send each message back, preceded by the sender's address, and log the beginning of the message
///
/// The reply to a message MESSAGE is `IP:PORT MESSAGE`. `quit` or the end of the client's input
/// ends the connection.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    messages: MessageOptions,

    #[command(flatten)]
    server: ServerOptions,
}

impl Program for Options {
    fn server(&mut self) -> &mut ServerOptions {
        &mut self.server
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let framing = options.messages.framing;
    let factory = move || Echo {
        framing,
        messages: Messages::new(framing),
    };
    serve(&options.server, &AnyTransport(factory))
}

struct Echo {
    framing: Framing,
    messages: Messages,
}

impl RequestHandler<Connection> for Echo {
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        let end = self.framing.end();
        self.messages.serve(conn, |conn, message| {
            if is_quit(message) {
                return Ok(false);
            }
            let peer = name_of(conn.peer_addr(), conn.id());
            tracing::info!("{peer} {}", excerpt(message));
            conn.write_all(&[peer.as_bytes(), b" ", message, end].concat())?;
            Ok(true)
        })
    }
}

impl RequestHandler<Datagram> for Echo {
    fn handle(&mut self, packet: &mut Datagram) -> Result<()> {
        let peer = name_of(packet.peer_addr(), packet.id());
        tracing::info!("{peer} {}", excerpt(packet.bytes()));
        Ok(packet.reply(&[peer.as_bytes(), b" ", packet.bytes()].concat())?)
    }
}
