//! `collect`: writes the messages of all clients to one output, in one order.

mod sink;
mod writer;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use socketserver::greenroom::sync::{OneshotSender, Sender, channel, oneshot};
use socketserver::{Connection, Datagram, RequestHandler, Result};

use crate::byte_size::Size;
use crate::cli::{Program, ServerOptions};
use crate::console::Console;
use crate::framing::{Framing, MessageOptions, Messages};
use crate::reopen;
use crate::serve::{AnyTransport, bind, need_another_thread, need_one_process};
use sink::Sink;
use writer::{Output, write_all};

/// Collect the messages of all clients in one file or on stdout
///
/// The server writes every message unchanged, in the order of one queue. When the queue is full,
/// clients wait. The server closes a connection only after all its messages have been written. With
/// --ack it confirms each written message with a line `ok`. "Written" means passed to the kernel:
/// the data survives the end of this program.
///
/// While the disk is full, clients wait, no message is confirmed, and /readyz answers 503. The file
/// contains whole messages only. SIGHUP and SIGUSR1 reopen the file, as logrotate needs it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    messages: MessageOptions,

    /// File to append to [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Maximum size of the file; the server then renames it to FILE.1 and begins a new one
    #[arg(long, value_name = "SIZE", requires = "output")]
    rotate: Option<Size>,

    /// Number of old files to keep
    #[arg(long, value_name = "N", default_value_t = 5, requires = "rotate")]
    keep: u32,

    /// Maximum number of messages that wait to be written
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    queue: u32,

    /// Confirm each message with a line `ok` after it has been written
    #[arg(long)]
    ack: bool,

    #[command(flatten)]
    server: ServerOptions,
}

impl Program for Options {
    fn server(&mut self) -> &mut ServerOptions {
        &mut self.server
    }

    fn check(&self) -> anyhow::Result<()> {
        need_one_process(&self.server, "all messages go into one queue")?;
        need_another_thread(&self.server, "clients wait for the output")
    }

    fn check_files(&self) -> anyhow::Result<()> {
        match &self.output {
            Some(path) => {
                sink::check(path).with_context(|| format!("cannot write to {}", path.display()))
            }
            None => Ok(()),
        }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let lines = options.messages.framing == Framing::Lines;
    let sink = match &options.output {
        Some(path) => Sink::file(path, lines, options.rotate.map(|size| size.0), options.keep)
            .with_context(|| format!("cannot write to {}", path.display()))?,
        None => Sink::stdout().context("cannot write to stdout")?,
    };
    let (queue, arriving) = channel(options.queue as usize);
    let output = Arc::<Output>::default();
    if options.output.is_some() {
        let (output, queue) = (output.clone(), queue.clone());
        reopen::register(move || {
            output.reopen();
            // If the queue is full, the writer is busy, and it checks the flag before its next
            // write.
            let _ = queue.try_send(Item::Look);
        });
    }
    let (framing, ack, last) = (options.messages.framing, options.ack, queue.clone());
    let factory = move || Collect {
        queue: queue.clone(),
        messages: Messages::new(framing),
        framing,
        ack,
    };
    let mut bound = bind(&options.server, &AnyTransport(factory))?;
    if options.output.is_some() {
        Console::new(&bound).attend(&mut bound)?;
    } else {
        // Stdout carries only messages: no console, and no line with the addresses.
        bound.stdout_taken = true;
    }
    let state = output.clone();
    bound.ready_if("output", move || state.check());
    let (drain_timeout, group) = (bound.patience.drain, bound.handle());
    let (told, ended) = std::sync::mpsc::channel();
    thread::Builder::new()
        .name("collect".into())
        .spawn(move || told.send(write_all(&arriving, sink, &output, &group)))
        .context("cannot start")?;
    let code = bound.serve_forever()?;
    // The servers have ended. The writer writes the queued messages before it takes this item. The
    // send may block on a full queue, so it has its own thread.
    thread::spawn(move || last.send(Item::End));
    let written = ended
        .recv_timeout(drain_timeout.max(Duration::from_secs(1)))
        .context("the output takes nothing; messages that were not confirmed are lost")?;
    written.map(|()| code)
}

/// An entry of the queue.
enum Item {
    Message(Vec<u8>),
    /// Asks the writer for a notification after it has written all earlier items.
    Mark(OneshotSender<()>),
    /// Wakes the writer, because the file may have to be reopened.
    Look,
    End,
}

struct Collect {
    queue: Sender<Item>,
    messages: Messages,
    framing: Framing,
    ack: bool,
}

const OK: &[u8] = b"ok\n";

fn put(queue: &Sender<Item>, item: Item) -> Result<()> {
    let gone = |_| "the output failed, and nothing more is taken".into();
    queue.send(item).map_err(gone)
}

/// Waits until all earlier items of the queue have been written.
fn until_written(queue: &Sender<Item>) -> Result<()> {
    let (mark, written) = oneshot();
    put(queue, Item::Mark(mark))?;
    let gone = |_| "the output failed before everything was written".into();
    written.recv().map_err(gone)
}

impl RequestHandler<Connection> for Collect {
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        let (queue, end, ack) = (&self.queue, self.framing.end(), self.ack);
        self.messages.serve(conn, |conn, message| {
            put(queue, Item::Message([message, end].concat()))?;
            if ack {
                until_written(queue)?;
                conn.write_all(OK)?;
            }
            Ok(true)
        })
    }

    fn finish(&mut self, _: &mut Connection) -> Result<()> {
        until_written(&self.queue)
    }
}

impl RequestHandler<Datagram> for Collect {
    fn handle(&mut self, packet: &mut Datagram) -> Result<()> {
        let message = [&packet.take_bytes(), self.framing.end()].concat();
        put(&self.queue, Item::Message(message))?;
        if self.ack {
            until_written(&self.queue)?;
            packet.reply(OK)?;
        }
        Ok(())
    }
}
