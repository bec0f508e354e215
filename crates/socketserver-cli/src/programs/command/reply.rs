//! The reply to a client: one frame with the output of the command and an optional remark of the
//! server.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use socketserver::framing::{Framed, JsonHeader, Map, Value};
use socketserver::{Connection, Result};

use super::output::Body;

/// The exit status for a rejected client: a shell returns 126 for a command that it may not
/// execute.
pub(super) const NOT_ADMITTED: i32 = 126;

/// The exit status for a command that the server could not run.
pub(super) const NOT_RUN: i32 = 125;

/// One reply frame.
pub(super) struct Reply {
    /// Members of the header besides the length.
    members: Map<String, Value>,
    body: Body,
    /// Text of the server that follows the body.
    remark: String,
}

impl Reply {
    /// Returns a reply with the status and the output of a command.
    pub(super) fn new(status: ExitStatus, body: Body) -> Self {
        Self::with(told(status), body)
    }

    /// Returns the reply to an empty command.
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

    /// Returns the reply to a command that is not run, or to a client that is not admitted.
    pub(super) fn rejection(status: i32, why: &str) -> Self {
        let mut reply = Self::with(Some(("exitStatus", status)), Body::empty());
        reply.add_line(why);
        reply
    }

    /// Sets the line of the server that follows the output of the command.
    pub(super) fn add_line(&mut self, text: &str) {
        let break_line = if self.body.ends_line { "" } else { "\n" };
        self.remark = format!("{break_line}socketserver: {text}\n");
    }

    /// Sends the reply. Its length is not limited.
    pub(super) fn send(self, conn: &mut Connection) -> Result<()> {
        let mut frames = Framed::new(conn, JsonHeader::default().max_body(u64::MAX));
        let length = self.body.len + self.remark.len() as u64;
        let mut body = frames.write_body_with(length, &self.members)?;
        self.body.write_to(&mut body)?;
        body.write_all(self.remark.as_bytes())?;
        Ok(body.finish()?)
    }
}

/// Returns the header member for an exit status: its name and value. `None` for status 0.
fn told(status: ExitStatus) -> Option<(&'static str, i32)> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(("exitStatus", code)),
        (None, signal) => Some(("signal", signal.unwrap_or(0))),
    }
}
