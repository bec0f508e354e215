//! `command`: runs what a client sends in a shell, and returns what that has written.
//!
//! Here is the conversation with a client. How a command is run is in `shell.rs`, how many at once
//! in `turns.rs`, what it has written in `output.rs`.

mod hangup;
mod output;
mod shell;
mod turns;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use socketserver::framing::{Bytes, FrameError, Framed, JsonHeader, Lines, Map, Parts, Value};
use socketserver::{Connection, RequestHandler, Result, greenroom};

use crate::cli::{Limit, Model, ServerOptions, limit};
use crate::console::Console;
use crate::serve::{Bound, Streams, bind};
use crate::size::Size;
use crate::text;
use crate::token::Token;
use hangup::Hangup;
use output::Body;
use shell::{Limits, Listeners, Outcome, Stopped};
use turns::Turns;

/// Run what clients send in a shell, and send back what it writes
///
/// WHOEVER CAN CONNECT CAN RUN ANY COMMAND AS YOU: on 127.0.0.1 every user of this machine, at
/// unix:///path only those whom its permissions admit. Other addresses need --auth-token-file.
/// Nothing is encrypted.
///
/// A command is run by `/bin/sh -c`, in a process group of its own, with its input from /dev/null.
/// The reply is what it has written to stdout, or to stderr if that is nothing: four bytes with the
/// length of the header (the little end first), the header `{"dataBodyLength": N}`, and N bytes. If
/// the command has failed, the header has "exitStatus" or "signal" as well.
///
/// The reply is sent when the shell has exited; what it has left running is killed then, unless that
/// runs in a session of its own (setsid). A client that closes, or only half-closes, gives up its
/// command, which is killed with everything in its group.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where a command ends
    #[arg(long, value_enum, default_value_t)]
    framing: Framing,

    /// How long a command may run before it is killed, and wait before that until it is its turn
    /// ("none" for any time)
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = limit)]
    time_limit: Limit,

    /// How much a command may write, to stdout and stderr together, before it is killed
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    output_limit: Size,

    /// How many commands run at once, those of all connections together
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_commands: u32,

    /// The secret that clients have to send first: the first line of a file that only you can read
    #[arg(long, value_name = "FILE")]
    auth_token_file: Option<PathBuf>,

    #[command(flatten)]
    server: ServerOptions,
}

/// Where a command ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Framing {
    /// Where one read of the server ends
    #[default]
    Chunks,
    /// At the end of the line
    Lines,
}

/// A longer command is refused.
pub(crate) const LONGEST: usize = 64 << 10;

/// Some kilobytes more could be read at once, and would be the next command.
const CHUNK: usize = LONGEST + 2;

/// How long a client has to send the token.
const ADMISSION: Duration = Duration::from_secs(10);

/// So many threads does `greenroom::unblock` have, one of which each connection needs.
const GREEN: usize = 32;

/// The exit status of a command that was not run: what a shell says of one that it may not run.
const NOT_ADMITTED: i32 = 126;

/// The same, because the server could not.
const NOT_RUN: i32 = 125;

pub(crate) fn run(mut options: Options) -> anyhow::Result<ExitCode> {
    let token = options.auth_token_file.as_deref().map(Token::load);
    let token = token.transpose().context("cannot start")?;
    if options.server.concurrency == Model::Green {
        limit_green(&mut options.server).context("cannot start")?;
    }
    let turns = Turns::new(options.max_commands).context("cannot start")?;
    let rules = Arc::new(Rules {
        framing: options.framing,
        time: options.time_limit.0,
        output: options.output_limit,
        max_commands: options.max_commands,
        token,
        forks: options.server.concurrency == Model::Forking,
        turns: turns.clone(),
    });
    let is_protected = rules.token.is_some();
    let factory = move || Session::new(rules.clone());
    let mut bound = bind(&options.server, &Streams(factory))?;
    if !is_protected {
        refuse_strangers(&bound).context("refusing to start")?;
    }
    let mut console = Console::new(&bound);
    if bound.model != Model::Forking {
        // Forked children count for themselves.
        console = console.with_note(move || turns.told());
    }
    console.attend(&mut bound)?;
    bound.serve_forever()
}

/// Without a token, only this machine may be able to connect.
fn refuse_strangers(bound: &Bound) -> anyhow::Result<()> {
    for (endpoint, address) in bound.listening.iter().zip(&bound.addresses) {
        let is_local = address
            .as_inet()
            .is_none_or(|address| address.ip().to_canonical().is_loopback());
        ensure!(
            is_local,
            "whoever reaches {endpoint} could run commands here: listen on 127.0.0.1 or unix:///path, or give \
             --auth-token-file FILE"
        );
    }
    Ok(())
}

fn limit_green(server: &mut ServerOptions) -> anyhow::Result<()> {
    let share = u32::try_from((GREEN / server.endpoints.len().max(1)).max(1))?;
    if server.workers.is_some_and(|workers| workers > share) {
        bail!(
            "the green model has {GREEN} threads for commands: --workers must be at most {share} for each of \
             {} endpoints; or take another model",
            server.endpoints.len()
        );
    }
    server.workers.get_or_insert(share);
    Ok(())
}

/// What holds for every command.
#[derive(Debug)]
struct Rules {
    framing: Framing,
    time: Option<Duration>,
    output: Size,
    max_commands: u32,
    token: Option<Token>,
    forks: bool,
    turns: Arc<Turns>,
}

/// One client.
struct Session {
    rules: Arc<Rules>,
    /// Once it was let in.
    admitted: Option<Admitted>,
    /// Lines that have arrived and not been obeyed.
    lines: Parts<Lines>,
}

struct Admitted {
    /// Of the connection, for the thread that watches it while a command runs.
    client: Arc<OwnedFd>,
    hangup: Option<Arc<Hangup>>,
    peer: String,
    /// When the connection is over in any case.
    until: Option<Instant>,
}

impl Admitted {
    /// A child that is to end does so, now that its command is cleared away.
    fn settle(&self) {
        if let Some(hangup) = &self.hangup {
            hangup.settle();
        }
    }
}

/// What a client has sent.
enum Sent {
    Command(Vec<u8>),
    TooLong,
    End,
}

impl RequestHandler<Connection> for Session {
    /// Obeys what there is to obey. A client that is silent holds nothing but its connection.
    fn handle(&mut self, conn: &mut Connection) -> Result {
        if self.admitted.is_none() {
            if !self.admit(conn)? {
                return Ok(());
            }
            conn.keep_alive();
            return Ok(());
        }
        let mut sent = self.next(conn)?;
        loop {
            match sent {
                Sent::Command(command) if is_http(&command) => return self.refuse_http(conn),
                Sent::Command(command) => {
                    if !self.obey(conn, command)? {
                        return Ok(());
                    }
                }
                Sent::TooLong => {
                    let why =
                        format!("a command has at most {LONGEST} bytes, and this one has more");
                    send(conn, Reply::refusal(NOT_RUN, &why))?;
                    if self.rules.framing == Framing::Chunks {
                        // The rest of it must not be taken for the next one.
                        return Ok(());
                    }
                }
                Sent::End => return Ok(()),
            }
            sent = match self.buffered(conn)? {
                Some(sent) => sent,
                None => {
                    conn.keep_alive();
                    return Ok(());
                }
            }
        }
    }
}

impl Session {
    fn new(rules: Arc<Rules>) -> Self {
        Self {
            rules,
            admitted: None,
            lines: Parts::new(Lines::default().max_len(LONGEST)),
        }
    }

    /// Lets a client in if it knows the token, where there is one.
    fn admit(&mut self, conn: &mut Connection) -> Result<bool> {
        let now = Instant::now();
        let until = conn
            .timeouts()
            .request
            .and_then(|limit| now.checked_add(limit));
        if let Some(token) = &self.rules.token {
            conn.set_deadline(Some(
                until.map_or(now + ADMISSION, |u| u.min(now + ADMISSION)),
            ));
            let verdict = present(conn, token)?;
            conn.set_deadline(until);
            if let Err(fault) = verdict {
                tracing::warn!(peer = %conn.peer_addr(), "refused: {fault}");
                let why = format!("refused: {fault}; the first line has to be the server's token");
                send(conn, Reply::refusal(NOT_ADMITTED, &why))?;
                return Ok(false);
            }
        }
        self.admitted = Some(Admitted {
            client: Arc::new(conn.as_fd().try_clone_to_owned()?),
            hangup: self
                .rules
                .forks
                .then(Hangup::catch)
                .transpose()?
                .map(Arc::new),
            peer: conn.peer_addr().to_string(),
            until,
        });
        Ok(true)
    }

    /// Waits for what the client sends next.
    fn next(&mut self, conn: &mut Connection) -> Result<Sent> {
        match self.rules.framing {
            Framing::Chunks => {
                let mut chunk = vec![0; CHUNK];
                let n = conn.read(&mut chunk)?;
                chunk.truncate(n);
                let command = without_end(&chunk);
                Ok(match command.len() {
                    _ if n == 0 => Sent::End,
                    0..=LONGEST => Sent::Command(command.to_vec()),
                    _ => Sent::TooLong,
                })
            }
            Framing::Lines => self.line(conn, Framed::read),
        }
    }

    /// What has been sent and received already.
    fn buffered(&mut self, conn: &mut Connection) -> Result<Option<Sent>> {
        match self.rules.framing {
            // What has not been read yet is still to be a chunk.
            Framing::Chunks => Ok(None),
            Framing::Lines => Ok(match self.line(conn, Framed::read_buffered)? {
                Sent::End => None,
                sent => Some(sent),
            }),
        }
    }

    fn line<'c>(
        &mut self,
        conn: &'c mut Connection,
        take: impl FnOnce(&mut Framed<&'c mut Connection, Lines>) -> Result<Option<Bytes>, FrameError>,
    ) -> Result<Sent> {
        let mut lines = Framed::from_parts(conn, std::mem::take(&mut self.lines));
        let taken = take(&mut lines);
        (_, self.lines) = lines.into_parts();
        match taken {
            Ok(Some(line)) => Ok(Sent::Command(line.to_vec())),
            Ok(None) => Ok(Sent::End),
            Err(FrameError::TooLong { .. }) => Ok(Sent::TooLong),
            Err(error) => Err(error.into()),
        }
    }

    /// Runs a command and sends the reply; `false` if there is nobody to send it to.
    fn obey(&self, conn: &mut Connection, command: Vec<u8>) -> Result<bool> {
        let Some(admitted) = &self.admitted else {
            return Ok(false);
        };
        if command.iter().all(u8::is_ascii_whitespace) {
            send(conn, Reply::new(Map::new(), Body::empty()))?;
            return Ok(true);
        }
        let shown = shown(&command);
        let begun = Instant::now();
        let ran = {
            let (rules, until) = (self.rules.clone(), admitted.until);
            let (client, hangup) = (admitted.client.clone(), admitted.hangup.clone());
            greenroom::unblock(move || rules.run(&command, &client, hangup.as_deref(), until))
        };
        let (peer, took) = (&admitted.peer, begun.elapsed());
        let outcome = match ran {
            Ok(outcome) => outcome,
            Err(NotRun::Gone) => {
                tracing::info!(%peer, command = %shown, ?took, "not run: the client has gone");
                admitted.settle();
                return Ok(false);
            }
            Err(NotRun::Because(why)) => {
                tracing::warn!(%peer, command = %shown, ?took, "not run: {why}");
                send(conn, Reply::refusal(NOT_RUN, &why))?;
                return Ok(true);
            }
        };
        let (status, bytes) = (outcome.status, outcome.output.len());
        let killed = outcome
            .stopped
            .map(|stopped| (self.rules.explain(&stopped), stopped));
        match &killed {
            None => tracing::info!(%peer, command = %shown, %status, ?took, bytes, "ran"),
            Some((why, _)) => {
                tracing::info!(%peer, command = %shown, %status, ?took, bytes, "killed: {why}");
            }
        }
        admitted.settle();
        if let Some((_, Stopped::Gone | Stopped::HungUp)) = killed {
            return Ok(false);
        }
        let members = shell::told(status).map(|(name, value)| (name.into(), value.into()));
        let mut reply = Reply::new(Map::from_iter(members), outcome.output.into_body()?);
        if let Some((why, _)) = killed {
            reply.add_line(&format!("killed: {why}"));
        }
        send(conn, reply)?;
        Ok(true)
    }

    fn refuse_http(&self, conn: &mut Connection) -> Result {
        tracing::warn!(peer = %conn.peer_addr(), "refused: it speaks HTTP");
        let why = "refused: this is no web server, and a request to one is no command";
        send(conn, Reply::refusal(NOT_ADMITTED, why))
    }
}

/// Why a command was not run.
enum NotRun {
    Gone,
    Because(String),
}

impl Rules {
    /// Runs a command when it is its turn. This blocks.
    fn run(
        &self,
        command: &[u8],
        client: &OwnedFd,
        hangup: Option<&Hangup>,
        until: Option<Instant>,
    ) -> Result<Outcome, NotRun> {
        let listeners = Listeners {
            client: client.as_fd(),
            hangup: hangup.map(Hangup::arrival),
        };
        let run = || {
            let turn = self.turns.wait(listeners, self.until(until));
            let _turn = turn.map_err(|stopped| match stopped {
                Stopped::TimeIsOver => NotRun::Because(self.no_turn()),
                Stopped::Failed(error) => NotRun::Because(format!("cannot wait: {error}")),
                _ => NotRun::Gone,
            })?;
            let limits = Limits {
                until: self.until(until),
                output: self.output.0,
            };
            let outcome = shell::run(command, listeners, limits)
                .map_err(|error| NotRun::Because(format!("cannot run /bin/sh: {error}")))?;
            self.turns.count(outcome.stopped.is_some());
            Ok(outcome)
        };
        match hangup {
            Some(hangup) => hangup.heard_by(run),
            None => run(),
        }
    }

    /// The end of a wait that begins now.
    fn until(&self, connection: Option<Instant>) -> Option<Instant> {
        let end = self.time.and_then(|time| Instant::now().checked_add(time));
        match (end, connection) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        }
    }

    fn no_turn(&self) -> String {
        format!(
            "it was not its turn in time: {} others run; the server's --max-commands lets more run at once, and its \
             --time-limit lets them wait",
            self.max_commands
        )
    }

    fn explain(&self, stopped: &Stopped) -> String {
        match stopped {
            Stopped::Gone => "the client has gone, or was cut".into(),
            Stopped::HungUp => "the server cuts it".into(),
            Stopped::TimeIsOver => format!(
                "it took longer than {}; the server's --time-limit raises that",
                humantime::format_duration(self.time.unwrap_or_default())
            ),
            Stopped::TooMuchOutput => format!(
                "it wrote more than {}; the server's --output-limit raises that",
                self.output
            ),
            Stopped::Failed(error) => format!("the server cannot keep its output: {error}"),
        }
    }
}

/// One frame.
struct Reply {
    /// What the header says beyond the length.
    members: Map<String, Value>,
    body: Body,
    /// What the server itself has to say, behind the body.
    remark: String,
}

impl Reply {
    fn new(members: Map<String, Value>, body: Body) -> Self {
        Self {
            members,
            body,
            remark: String::new(),
        }
    }

    fn refusal(status: i32, why: &str) -> Self {
        let members = Map::from_iter([("exitStatus".into(), status.into())]);
        let mut reply = Self::new(members, Body::empty());
        reply.add_line(why);
        reply
    }

    fn add_line(&mut self, text: &str) {
        let break_line = if self.body.ends_line { "" } else { "\n" };
        self.remark = format!("{break_line}socketserver: {text}\n");
    }
}

fn send(conn: &mut Connection, reply: Reply) -> Result {
    let mut frames = Framed::new(conn, JsonHeader::default().max_body(u64::MAX));
    let length = reply.body.len + reply.remark.len() as u64;
    let mut body = frames.write_body_with(length, &reply.members)?;
    reply.body.write_to(&mut body)?;
    body.write_all(reply.remark.as_bytes())?;
    Ok(body.finish()?)
}

/// Takes the token from a client, and not a byte more: what follows is a command.
fn present(conn: &mut Connection, token: &Token) -> Result<Result<(), &'static str>> {
    let mut line = vec![0; token.line().len()];
    let mut filled = 0;
    while filled < line.len() && !line[..filled].contains(&b'\n') {
        match conn.read(&mut line[filled..]) {
            Ok(0) => return Ok(Err("it closed without a token")),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Ok(Err("no token came in time"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(if token.is(&line[..filled]) {
        Ok(())
    } else {
        Err("wrong token")
    })
}

/// A page in a browser on this machine can have it send a request here, whose lines would be run.
fn is_http(command: &[u8]) -> bool {
    let line = command.split(|&byte| byte == b'\n').next();
    let mut words = line
        .unwrap_or_default()
        .trim_ascii_end()
        .split(|&byte| byte == b' ');
    words
        .next()
        .is_some_and(|method| method.iter().all(u8::is_ascii_uppercase))
        && words
            .next_back()
            .is_some_and(|version| version.starts_with(b"HTTP/"))
}

fn without_end(command: &[u8]) -> &[u8] {
    let without = command.strip_suffix(b"\r\n");
    without
        .or_else(|| command.strip_suffix(b"\n"))
        .unwrap_or(command)
}

/// A command for the log.
fn shown(command: &[u8]) -> String {
    const LENGTH: usize = 200;
    // Every byte of it is shown as one character at least, but for UTF-8.
    let mut shown = text::printable(&command[..command.len().min(LENGTH * 4)]);
    if let Some((end, _)) = shown.char_indices().nth(LENGTH) {
        shown.truncate(end);
        shown.push_str("...");
    }
    shown
}
