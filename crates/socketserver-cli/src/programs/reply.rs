//! `reply`: an operator answers each client by hand.

use std::collections::VecDeque;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use socketserver::greenroom::sync::{OneshotSender, RecvError, oneshot};
use socketserver::{
    Connection, Datagram, RequestHandler, RequestId, RequestState, Result, ServerHandle,
};

use crate::cli::{Program, ServerOptions};
use crate::console::Console;
use crate::escape::{name_of, printable};
use crate::framing::{Framing, MessageOptions, Messages, is_quit};
use crate::serve::{AnyTransport, bind, need_another_thread, need_one_process};
use crate::terminal::{self, Lines};

/// Answer each message by hand
///
/// The server shows the messages on this terminal, one at a time, and sends the line that you type
/// to the client of the message. Lines that begin with a slash are commands, such as /list and
/// /quit; /help lists them all. To send a line that begins with a slash, type two slashes.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    messages: MessageOptions,

    /// Maximum time that a message waits for its answer; the server then closes its connection
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    answer_timeout: Duration,

    #[command(flatten)]
    server: ServerOptions,
}

impl Program for Options {
    fn server(&mut self) -> &mut ServerOptions {
        &mut self.server
    }

    fn check(&self) -> anyhow::Result<()> {
        need_one_process(&self.server, "one operator answers all clients")?;
        need_another_thread(&self.server, "clients wait for the operator")
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let desk = Arc::new(OperatorQueue {
        waiting: Mutex::default(),
        asked: AtomicU64::new(0),
        timeout: options.answer_timeout,
    });
    let (framing, own) = (options.messages.framing, desk.clone());
    let factory = move || Reply {
        desk: own.clone(),
        framing,
        messages: Messages::new(framing),
    };
    let mut bound = bind(&options.server, &AnyTransport(factory))?;
    let counted = desk.clone();
    let console = Console::new(&bound)
        .with_prefix("/")
        .with_note(move || format!("messages that wait for an answer: {}\n", counted.len()));
    let lines = Lines {
        prompt: "> ",
        greeting: "type answers to the messages that are shown here, or /help",
    };
    lines.attend(&mut bound, move |line| match line.strip_prefix(b"/") {
        Some(command) if !command.starts_with(b"/") => {
            terminal::say(&console.obey(&String::from_utf8_lossy(command)));
            desk.forget_cut();
        }
        Some(text) => desk.answer(text),
        None => desk.answer(line),
    })?;
    bound.serve_forever()
}

/// Messages that wait for their answers. The first message is on the terminal.
struct OperatorQueue {
    waiting: Mutex<VecDeque<Question>>,
    /// Number of messages so far.
    asked: AtomicU64,
    timeout: Duration,
}

struct Question {
    number: u64,
    server: ServerHandle,
    id: RequestId,
    peer: String,
    text: String,
    answer: OneshotSender<Vec<u8>>,
}

impl OperatorQueue {
    /// Waits for the operator's answer.
    fn ask(
        &self,
        (server, id): (&ServerHandle, RequestId),
        peer: &str,
        message: &[u8],
    ) -> Result<Vec<u8>> {
        let (answer, answered) = oneshot();
        let question = Question {
            number: self.asked.fetch_add(1, Ordering::Relaxed),
            server: server.clone(),
            id,
            peer: peer.into(),
            text: printable(message.trim_ascii_end()),
            answer,
        };
        {
            let mut waiting = self.waiting();
            waiting.push_back(question);
            if let [only] = waiting.make_contiguous() {
                show(only);
            }
        }
        let until = Instant::now().checked_add(self.timeout);
        answered.recv_until(until).map_err(|error| match error {
            RecvError::TimedOut => {
                drop(answered);
                self.tidy();
                socketserver::BoxError::from(std::io::Error::new(
                    std::io::ErrorKind::TimedOut,
                    "nobody has answered",
                ))
            }
            _ => "nobody will answer".into(),
        })
    }

    /// Sends a line to the client of the first message. An empty line shows that message again.
    fn answer(&self, line: &[u8]) {
        self.tidy();
        let mut waiting = self.waiting();
        if line.is_empty() {
            match waiting.front() {
                Some(first) => show(first),
                None => terminal::say("nobody waits\n"),
            }
            return;
        }
        let Some(question) = waiting.pop_front() else {
            terminal::say("nobody waits, and nothing was sent\n");
            return;
        };
        if question.answer.send(line.to_vec()).is_err() {
            terminal::say(&format!("{} has gone; nothing was sent\n", question.peer));
        }
        if let Some(next) = waiting.front() {
            show(next);
        }
    }

    /// Removes messages whose handlers no longer wait, and shows the first message if it has
    /// changed.
    fn tidy(&self) {
        self.keep(|question| !question.answer.is_closed());
    }

    /// Removes messages whose connections the operator has cancelled. Their handlers then end.
    fn forget_cut(&self) {
        self.keep(|question| {
            let live = question.server.active();
            let request = live.iter().find(|request| request.info.id() == question.id);
            request.is_some_and(|request| request.state != RequestState::Cancelled)
        });
    }

    fn keep(&self, wanted: impl Fn(&Question) -> bool) {
        let mut waiting = self.waiting();
        let before = waiting.front().map(|first| first.number);
        waiting.retain(wanted);
        if let Some(first) = waiting.front()
            && before != Some(first.number)
        {
            show(first);
        }
    }

    fn len(&self) -> usize {
        self.waiting().len()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Question>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn show(question: &Question) {
    terminal::say(&format!("{}: {}\n", question.peer, question.text));
}

struct Reply {
    desk: Arc<OperatorQueue>,
    framing: Framing,
    messages: Messages,
}

impl RequestHandler<Connection> for Reply {
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        let (desk, end) = (&self.desk, self.framing.end());
        self.messages
            .serve(conn, |conn: &mut Connection, message: &Bytes| {
                if is_quit(message) {
                    return Ok(false);
                }
                let peer = name_of(conn.peer_addr(), conn.id());
                let answer = desk.ask((conn.server(), conn.id()), &peer, message)?;
                conn.write_all(&[&answer, end].concat())?;
                Ok(true)
            })
    }
}

impl RequestHandler<Datagram> for Reply {
    fn handle(&mut self, packet: &mut Datagram) -> Result<()> {
        let peer = name_of(packet.peer_addr(), packet.id());
        let from = (packet.server(), packet.id());
        let answer = self.desk.ask(from, &peer, packet.bytes())?;
        Ok(packet.reply(&[&answer, self.framing.end()].concat())?)
    }
}
