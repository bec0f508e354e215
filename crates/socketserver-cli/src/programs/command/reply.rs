//! What a client is told: a frame with what the command has written, and a remark of the server.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use socketserver::framing::{Framed, JsonHeader, Map, Value};
use socketserver::{Connection, Result};

use super::output::Body;

/// The exit status of a command that was not run: what a shell says of one that it may not run.
pub(super) const NOT_ADMITTED: i32 = 126;

/// The same, because the server could not.
pub(super) const NOT_RUN: i32 = 125;

/// One frame.
pub(super) struct Reply {
    /// What the header says beyond the length.
    members: Map<String, Value>,
    body: Body,
    /// What the server itself has to say, behind the body.
    remark: String,
}

impl Reply {
    /// How a command has ended, and what it has written.
    pub(super) fn new(status: ExitStatus, body: Body) -> Self {
        Self::with(told(status), body)
    }

    /// What is said to somebody who has asked for nothing.
    pub(super) fn empty() -> Self {
        Self::with(None, Body::empty())
    }

    fn with(member: Option<(&str, i32)>, body: Body) -> Self {
        let members = member.map(|(name, value)| (name.into(), value.into()));
        Self {
            members: Map::from_iter(members),
            body,
            remark: String::new(),
        }
    }

    /// What is said instead of running a command.
    pub(super) fn rejection(status: i32, why: &str) -> Self {
        let mut reply = Self::with(Some(("exitStatus", status)), Body::empty());
        reply.add_line(why);
        reply
    }

    /// Says something behind what the command has written.
    pub(super) fn add_line(&mut self, text: &str) {
        let break_line = if self.body.ends_line { "" } else { "\n" };
        self.remark = format!("{break_line}socketserver: {text}\n");
    }

    /// Sends it, long as it may be.
    pub(super) fn send(self, conn: &mut Connection) -> Result<()> {
        let mut frames = Framed::new(conn, JsonHeader::default().max_body(u64::MAX));
        let length = self.body.len + self.remark.len() as u64;
        let mut body = frames.write_body_with(length, &self.members)?;
        self.body.write_to(&mut body)?;
        body.write_all(self.remark.as_bytes())?;
        Ok(body.finish()?)
    }
}

/// How a status is told to the client: a member of the header and its value.
fn told(status: ExitStatus) -> Option<(&'static str, i32)> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(("exitStatus", code)),
        (None, signal) => Some(("signal", signal.unwrap_or(0))),
    }
}
