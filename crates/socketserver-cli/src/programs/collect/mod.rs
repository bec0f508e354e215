//! `collect`: what any client sends ends up in one place, in one order.

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

/// Gather what all clients send, in one file or on stdout
///
/// Every message is written as it came, in the order in which messages were taken from a queue. When
/// the queue is full, clients wait. The server closes a connection only after everything that came
/// by it has been written; with --ack, each message is confirmed by a line `ok` once it is. Written
/// means handed to the system, which survives the end of this program.
///
/// On a full disk clients wait, nothing is confirmed, and /readyz answers 503 until there is room; the
/// file has whole messages only. SIGHUP and SIGUSR1 open the file anew, as logrotate needs it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    messages: MessageOptions,

    /// The file to append to [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Begin a new file when this one has so many bytes; the old one becomes FILE.1, and so on
    #[arg(long, value_name = "SIZE", requires = "output")]
    rotate: Option<Size>,

    /// How many old files are kept
    #[arg(long, value_name = "N", default_value_t = 5, requires = "rotate")]
    keep: u32,

    /// How many messages may wait to be written
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    queue: u32,

    /// Answer each message with a line `ok` once it has been written
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
            // A full queue is about to be written, and then the file is looked at.
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
        // Nothing but messages goes there: no console, and no word about where it listens.
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
    // Nobody is served any more. What is in the queue is written before this, which may have to wait
    // for room itself.
    thread::spawn(move || last.send(Item::End));
    let written = ended
        .recv_timeout(drain_timeout.max(Duration::from_secs(1)))
        .context("the output takes nothing; messages that were not confirmed are lost")?;
    written.map(|()| code)
}

/// What is on the queue.
enum Item {
    Message(Vec<u8>),
    /// Tell once everything before this has been written.
    Mark(OneshotSender<()>),
    /// The file may have to be opened anew.
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

/// Waits until everything that was put before has been written.
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
