//! The conversation with one client: the token, then commands and replies in turn.

use std::io::{self, BufRead, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socketserver::framing::{Bytes, FrameError, Framed, FramedParts, Lines};
use socketserver::{Connection, RequestHandler, Result, greenroom};

use super::cancel_signal::CancelSignal;
use super::policy::{RejectedCommand, Rules};
use super::reply::{NOT_ADMITTED, NOT_RUN, Reply};
use super::shell::{Outcome, Stopped};
use super::{Framing, LONGEST};
use crate::auth_token::{self, Token};
use crate::escape;

/// What is read at once: the longest command, and the end of its line.
const CHUNK: usize = LONGEST + 2;

/// How long a client has to send the token.
const ADMISSION: Duration = Duration::from_secs(10);

/// How long the rest of the token's line may take, once there is as much as the shortest token has.
const LINE: Duration = Duration::from_secs(1);

/// One client.
pub(super) struct Session {
    rules: Arc<Rules>,
    /// Until it is let in or refused, where there is a token.
    stranger: Option<Unauthenticated>,
    /// Once it was let in.
    admitted: Option<Authenticated>,
    /// When the connection is over in any case.
    until: Option<Instant>,
    /// Lines that have arrived and not been obeyed.
    lines: FramedParts<Lines>,
    /// The first bytes that are no token were looked at.
    begun: bool,
}

/// Who has not sent all of the token yet.
struct Unauthenticated {
    /// What has come of it.
    line: Vec<u8>,
    /// The rest of the line has to be there soon.
    is_hurried: bool,
    until: Instant,
}

const WRONG: &str = "wrong token";

struct Authenticated {
    /// In a forked child.
    hangup: Option<Arc<CancelSignal>>,
    peer: String,
    /// When the connection is over in any case.
    until: Option<Instant>,
}

/// What a client has sent.
enum Sent {
    Command(Vec<u8>),
    TooLong,
    /// The beginning of what is no command, and the protocol that it belongs to.
    Foreign(&'static str),
    End,
}

impl RequestHandler<Connection> for Session {
    fn setup(&mut self, conn: &mut Connection) -> Result<()> {
        let limit = conn.timeouts().request;
        self.until = limit.and_then(|limit| Instant::now().checked_add(limit));
        Ok(())
    }

    /// Obeys what there is to obey. A client that is silent holds nothing but its connection.
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        if self.admitted.is_none() {
            return self.receive(conn);
        }
        let mut sent = self.next(conn)?;
        loop {
            match sent {
                Sent::Command(command) => {
                    if let Some(protocol) = foreign(&command) {
                        return refuse(conn, protocol);
                    }
                    if !self.obey(conn, command)? {
                        return Ok(());
                    }
                }
                Sent::TooLong => {
                    let why =
                        format!("a command has at most {LONGEST} bytes, and this one has more");
                    // What follows is not taken for a command: who sends so much may be sending
                    // something else.
                    return Reply::rejection(NOT_RUN, &why).send(conn);
                }
                Sent::Foreign(protocol) => return refuse(conn, protocol),
                Sent::End => return Ok(()),
            }
            sent = match self.buffered(conn)? {
                Some(sent) => sent,
                None => {
                    conn.suspend_until_readable();
                    return Ok(());
                }
            }
        }
    }

    /// A pause that was too long for a stranger ends here, without another call of `handle`.
    fn finish(&mut self, conn: &mut Connection) -> Result<()> {
        let now = Instant::now();
        match self.stranger.take() {
            Some(stranger) if stranger.until <= now => {
                // What is said fits into an empty socket.
                conn.set_deadline(now.checked_add(Duration::from_secs(1)));
                let fault = match stranger.is_hurried {
                    true => WRONG,
                    false => "no token came in time",
                };
                turn_away(conn, fault)
            }
            _ => Ok(()),
        }
    }
}

impl Session {
    pub(super) fn new(rules: Arc<Rules>) -> Self {
        Self {
            rules,
            stranger: None,
            admitted: None,
            until: None,
            lines: FramedParts::new(Lines::default().max_len(LONGEST)),
            begun: false,
        }
    }

    /// Lets a client in, at once or when it has sent the token.
    fn receive(&mut self, conn: &mut Connection) -> Result<()> {
        if let Some(token) = &self.rules.token {
            let Some(mut stranger) = self.stranger.take() else {
                let soon = Instant::now() + ADMISSION;
                let until = self.until.map_or(soon, |until| until.min(soon));
                // The pauses end then, too.
                conn.set_deadline(Some(until));
                conn.suspend_until_readable();
                self.stranger = Some(Unauthenticated {
                    line: Vec::new(),
                    is_hurried: false,
                    until,
                });
                return Ok(());
            };
            let heard = stranger.hear(conn, token);
            match heard {
                Ok(Some(Ok(()))) => conn.set_deadline(self.until),
                Ok(Some(Err(fault))) => return turn_away(conn, fault),
                // Its time may be what is over.
                Ok(None) | Err(_) => {
                    self.stranger = Some(stranger);
                    conn.suspend_until_readable();
                    return Ok(heard.map(drop)?);
                }
            }
        }
        self.admitted = Some(Authenticated {
            hangup: self
                .rules
                .forks
                .then(CancelSignal::catch)
                .transpose()?
                .map(Arc::new),
            peer: escape::name_of(conn.peer_addr(), conn.id()),
            until: self.until,
        });
        conn.suspend_until_readable();
        Ok(())
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
            Framing::Lines => {
                // Nobody waits for the end of a line that is none.
                if !self.begun {
                    self.begun = true;
                    if let Some(protocol) = foreign(conn.fill_buf()?) {
                        return Ok(Sent::Foreign(protocol));
                    }
                }
                self.line(conn, Framed::read)
            }
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
        let mut lines =
            Framed::from_parts(conn, std::mem::take(&mut self.lines)).with_receive_rate();
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
        let Some(client) = &self.admitted else {
            return Ok(false);
        };
        if command.iter().all(u8::is_ascii_whitespace) {
            Reply::empty().send(conn)?;
            return Ok(true);
        }
        // For the thread that watches it while the command runs.
        let socket = conn.as_fd().try_clone_to_owned()?;
        let reply = match client.run(&self.rules, command, socket) {
            Err(RejectedCommand::Gone) => return Ok(false),
            Err(RejectedCommand::Because(why)) => Reply::rejection(NOT_RUN, &why),
            Ok(outcome) => match outcome.stopped {
                Some(Stopped::Gone | Stopped::HungUp) => return Ok(false),
                None => Reply::new(outcome.status, outcome.output.into_body()?),
                Some(stopped) => {
                    let mut reply = Reply::new(outcome.status, outcome.output.into_body()?);
                    reply.add_line(&format!("killed: {}", self.rules.explain(&stopped)));
                    reply
                }
            },
        };
        reply.send(conn)?;
        Ok(true)
    }
}

impl Authenticated {
    /// Runs a command, where it holds up nobody else, and logs what became of it.
    fn run(
        &self,
        rules: &Arc<Rules>,
        command: Vec<u8>,
        socket: OwnedFd,
    ) -> Result<Outcome, RejectedCommand> {
        let shown = escape::excerpt(&command);
        let begun = Instant::now();
        let ran = {
            let (rules, hangup, until) = (rules.clone(), self.hangup.clone(), self.until);
            greenroom::unblock(move || rules.run(&command, &socket, hangup.as_deref(), until))
        };
        let (peer, command, took) = (&self.peer, shown, begun.elapsed());
        match &ran {
            Ok(outcome) => {
                let (status, bytes) = (outcome.status, outcome.output.len());
                match &outcome.stopped {
                    None => tracing::info!(%peer, %command, %status, ?took, bytes, "ran"),
                    // The server's own trouble, such as a directory for output that cannot be used:
                    // an operator has to see to it.
                    Some(stopped @ Stopped::Failed(_)) => {
                        let why = rules.explain(stopped);
                        tracing::warn!(%peer, %command, %status, ?took, bytes, "killed: {why}");
                    }
                    Some(stopped) => {
                        let why = rules.explain(stopped);
                        tracing::info!(%peer, %command, %status, ?took, bytes, "killed: {why}");
                    }
                }
            }
            Err(RejectedCommand::Gone) => {
                tracing::info!(%peer, %command, ?took, "not run: the client has gone");
            }
            Err(RejectedCommand::Because(why)) => {
                tracing::warn!(%peer, %command, ?took, "not run: {why}");
            }
        }
        if let Some(hangup) = &self.hangup {
            hangup.settle();
        }
        ran
    }
}

impl Unauthenticated {
    /// Takes what has come of the token, and not a byte more: what follows is a command. `None` if
    /// there is more to come.
    fn hear(
        &mut self,
        conn: &mut Connection,
        token: &Token,
    ) -> io::Result<Option<Result<(), &'static str>>> {
        let came = conn.fill_buf()?;
        if came.is_empty() {
            return Ok(Some(Err("it closed without a token")));
        }
        let end = came.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(came.len(), |newline| newline + 1);
        self.line.extend_from_slice(&came[..taken]);
        conn.consume(taken);
        // Nothing before the end of the line depends on the token: not how much is read, nor when.
        Ok(match end {
            Some(_) if token.is(&self.line) => Some(Ok(())),
            Some(_) => Some(Err(WRONG)),
            None if self.line.len() > auth_token::LONGEST => Some(Err(WRONG)),
            // As much as the shortest token has: it may be something else, without an end.
            None if self.line.len() > auth_token::SHORTEST && !self.is_hurried => {
                self.is_hurried = true;
                self.until = self.until.min(Instant::now() + LINE);
                conn.set_deadline(Some(self.until));
                None
            }
            None => None,
        })
    }
}

fn turn_away(conn: &mut Connection, fault: &str) -> Result<()> {
    tracing::warn!(peer = %conn.peer_addr(), "refused: {fault}");
    let why = format!("refused: {fault}; the first line has to be the server's token");
    Reply::rejection(NOT_ADMITTED, &why).send(conn)
}

fn refuse(conn: &mut Connection, protocol: &str) -> Result<()> {
    tracing::warn!(peer = %conn.peer_addr(), "refused: it speaks {protocol}");
    let why =
        format!("refused: this is no server for {protocol}, and a request to one is no command");
    Reply::rejection(NOT_ADMITTED, &why).send(conn)
}

/// The protocol that this is the beginning of, if it is one of a browser's. A page in a browser on
/// this machine can have it send a request here, whose lines would be run.
fn foreign(sent: &[u8]) -> Option<&'static str> {
    // The record of a handshake: RFC 8446, 5.1.
    if sent.starts_with(b"\x16\x03") {
        return Some("TLS");
    }
    // Empty lines before a request are skipped by servers, RFC 9112, 2.2, and by the shell.
    let sent = sent.trim_ascii_start();
    (begins_request(sent) || is_request_line(sent)).then_some("HTTP")
}

/// A method and a target: the rest of the line may not have come yet, long as it may be.
fn begins_request(sent: &[u8]) -> bool {
    const METHODS: [&[u8]; 10] = [
        b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"CONNECT", b"TRACE",
        b"PRI",
    ];
    METHODS.iter().any(|&method| {
        let target = sent
            .strip_prefix(method)
            .and_then(|rest| rest.strip_prefix(b" "));
        target.is_some_and(|target| {
            target.starts_with(b"/")
                || target.starts_with(b"*")
                || target
                    .get(..4)
                    .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"http"))
        })
    })
}

/// Whatever its method is.
fn is_request_line(sent: &[u8]) -> bool {
    let line = sent.split(|&byte| byte == b'\n').next();
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
