//! `upper`: sends all bytes back in upper case.

use std::io::{Read, Write};
use std::process::ExitCode;

use clap::Args;
use socketserver::{Connection, Datagram, RequestHandler, Result};

use crate::cli::{Program, ServerOptions};
use crate::serve::{AnyTransport, serve};

/// Send all bytes back, with ASCII letters in upper case
///
/// All other bytes remain unchanged. Over TCP and Unix stream sockets, each chunk is answered as it
/// arrives, until the client closes. Over UDP and Unix datagram sockets, each datagram is answered.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    server: ServerOptions,
}

impl Program for Options {
    fn server(&mut self) -> &mut ServerOptions {
        &mut self.server
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    serve(&options.server, &AnyTransport(|| Upper))
}

struct Upper;

impl RequestHandler<Connection> for Upper {
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        let mut chunk = [0; 8192];
        loop {
            let n = conn.read(&mut chunk)?;
            if n == 0 {
                return Ok(());
            }
            chunk[..n].make_ascii_uppercase();
            conn.write_all(&chunk[..n])?;
        }
    }
}

impl RequestHandler<Datagram> for Upper {
    fn handle(&mut self, packet: &mut Datagram) -> Result<()> {
        Ok(packet.reply(&packet.bytes().to_ascii_uppercase())?)
    }
}
