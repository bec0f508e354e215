//! The protocol with one client: the token, then commands and replies in turn.

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

/// Size of one read: the longest command, and the end of its line.
const CHUNK: usize = LONGEST + 2;

/// Time within which a client has to send the token.
const ADMISSION: Duration = Duration::from_secs(10);

/// Time for the rest of the token's line, after as many bytes as the shortest token has arrived.
const LINE: Duration = Duration::from_secs(1);

/// The state of one client's connection.
pub(super) struct Session {
    rules: Arc<Rules>,
    /// The client until it is admitted or rejected. `None` if the server has no token.
    stranger: Option<Unauthenticated>,
    /// The client after its admission.
    admitted: Option<Authenticated>,
    /// The deadline of the whole connection.
    until: Option<Instant>,
    /// Received lines that have not been run yet.
    lines: FramedParts<Lines>,
    /// True once the first bytes after the token have been checked for a foreign protocol.
    begun: bool,
}

/// A client that has not sent the whole token yet.
struct Unauthenticated {
    /// The received part of the token's line.
    line: Vec<u8>,
    /// True once the rest of the line has to arrive within `LINE`.
    is_hurried: bool,
    until: Instant,
}

const WRONG: &str = "wrong token";

struct Authenticated {
    /// `None` except in a forked child.
    hangup: Option<Arc<CancelSignal>>,
    peer: String,
    /// The deadline of the whole connection.
    until: Option<Instant>,
}

/// Input from a client.
enum Sent {
    Command(Vec<u8>),
    TooLong,
    /// The beginning of a request in another protocol, with the name of that protocol.
    Foreign(&'static str),
    End,
}

impl RequestHandler<Connection> for Session {
    fn setup(&mut self, conn: &mut Connection) -> Result<()> {
        let limit = conn.timeouts().request;
        self.until = limit.and_then(|limit| Instant::now().checked_add(limit));
        Ok(())
    }

    /// Runs the received commands, and then suspends the connection. A silent client occupies
    /// nothing but its connection.
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
                    // The server closes the connection, because such a client may not be sending
                    // commands. Further input must not be run.
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

    /// Rejects a client whose token did not arrive in time. When the deadline passes while the
    /// connection is suspended, `handle` is not called again.
    fn finish(&mut self, conn: &mut Connection) -> Result<()> {
        let now = Instant::now();
        match self.stranger.take() {
            Some(stranger) if stranger.until <= now => {
                // The rejection fits into an empty socket buffer, so 1 s is enough.
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

    /// Admits a client: at once, or after it has sent the token if the server has one.
    fn receive(&mut self, conn: &mut Connection) -> Result<()> {
        if let Some(token) = &self.rules.token {
            let Some(mut stranger) = self.stranger.take() else {
                let soon = Instant::now() + ADMISSION;
                let until = self.until.map_or(soon, |until| until.min(soon));
                // The deadline ends suspensions, too.
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
                // The error may be the timeout, which `finish` reports.
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

    /// Waits for the next input of the client.
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
                // Input in another protocol may never have a line end, so the check comes first.
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

    /// Returns the next input that is in the buffer already, without waiting.
    fn buffered(&mut self, conn: &mut Connection) -> Result<Option<Sent>> {
        match self.rules.framing {
            // A chunk is one read, and the read comes with the next call of `handle`.
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

    /// Runs a command and sends the reply. Returns `false` if the client has disconnected.
    fn obey(&self, conn: &mut Connection, command: Vec<u8>) -> Result<bool> {
        let Some(client) = &self.admitted else {
            return Ok(false);
        };
        if command.iter().all(u8::is_ascii_whitespace) {
            Reply::empty().send(conn)?;
            return Ok(true);
        }
        // The thread that runs the command watches this copy for a disconnect.
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
    /// Runs a command in a blocking thread, so that no other client is delayed, and logs the
    /// outcome.
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
                    // A failure of the server itself, such as a directory for output that cannot be
                    // used. An operator has to fix it.
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
    /// Takes received bytes up to the end of the token's line. Later bytes belong to a command and
    /// stay in the buffer. Returns `None` if the line is not complete yet.
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
        // Before the end of the line, nothing depends on the token: neither the number of bytes
        // read, nor the time of a read.
        Ok(match end {
            Some(_) if token.is(&self.line) => Some(Ok(())),
            Some(_) => Some(Err(WRONG)),
            None if self.line.len() > auth_token::LONGEST => Some(Err(WRONG)),
            // The input is longer than the shortest token. It may be another protocol, without a
            // line end.
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

/// Returns the browser protocol that the input begins with, if there is one. A page in a browser on
/// this machine can make the browser send a request here, and the shell would run its lines.
fn foreign(sent: &[u8]) -> Option<&'static str> {
    // The record of a TLS handshake: RFC 8446, 5.1.
    if sent.starts_with(b"\x16\x03") {
        return Some("TLS");
    }
    // Servers skip empty lines before a request, RFC 9112, 2.2, and the shell skips them, too.
    let sent = sent.trim_ascii_start();
    (begins_request(sent) || is_request_line(sent)).then_some("HTTP")
}

/// Returns true if the input begins with a method and a target. The rest of the line may not have
/// arrived yet.
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

/// Returns true if the first line is an HTTP request line with any method.
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
