//! The limits of a command, and the messages for a command that exceeds them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socketserver::Result;

use super::Framing;
use super::cancel_signal::CancelSignal;
use super::shell::{self, Limits, Listeners, Outcome, Stopped};
use super::slots::CommandSlots;
use crate::auth_token::Token;
use crate::byte_size::Size;

/// The settings for all commands.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) framing: Framing,
    pub(super) time: Option<Duration>,
    /// Maximum time to wait for a slot.
    pub(super) wait: Option<Duration>,
    pub(super) output: Size,
    pub(super) max_commands: u32,
    pub(super) token: Option<Token>,
    pub(super) forks: bool,
    pub(super) turns: Arc<CommandSlots>,
}

/// The reason why a command was not run.
pub(super) enum RejectedCommand {
    Gone,
    Because(String),
}

impl Rules {
    /// Waits for a slot and runs a command. Blocks the thread.
    pub(super) fn run(
        &self,
        command: &[u8],
        client: &OwnedFd,
        hangup: Option<&CancelSignal>,
        until: Option<Instant>,
    ) -> Result<Outcome, RejectedCommand> {
        let listeners = Listeners {
            client: client.as_fd(),
            hangup: hangup.map(CancelSignal::arrival),
        };
        let run = || {
            let end = sooner(self.wait, until);
            let turn = self.turns.wait(listeners, end);
            let _turn = turn.map_err(|stopped| match stopped {
                Stopped::TimeIsOver if end == until => {
                    RejectedCommand::Because(self.explain(&Stopped::RequestIsOver))
                }
                Stopped::TimeIsOver => RejectedCommand::Because(self.no_turn()),
                Stopped::Failed(error) => RejectedCommand::Because(format!("cannot wait: {error}")),
                _ => RejectedCommand::Gone,
            })?;
            let limits = Limits {
                until: sooner(self.time, until),
                output: self.output.0,
            };
            let mut outcome = shell::run(command, listeners, limits).map_err(|error| {
                RejectedCommand::Because(format!("cannot run /bin/sh: {error}"))
            })?;
            if let Some(stopped @ Stopped::TimeIsOver) = &mut outcome.stopped
                && limits.until == until
            {
                *stopped = Stopped::RequestIsOver;
            }
            self.turns.count(outcome.stopped.is_some());
            Ok(outcome)
        };
        match hangup {
            Some(hangup) => hangup.heard_by(run),
            None => run(),
        }
    }

    fn no_turn(&self) -> String {
        format!(
            "busy: all {} places are taken; try again later (the server's --max-commands lets more \
             run at once, and its --wait-limit lets them wait longer)",
            self.max_commands
        )
    }

    pub(super) fn explain(&self, stopped: &Stopped) -> String {
        match stopped {
            Stopped::Gone => "the client has gone, or was cut".into(),
            Stopped::HungUp => "the server cuts it".into(),
            Stopped::TimeIsOver => format!(
                "it took longer than {}; the server's --time-limit raises that",
                humantime::format_duration(self.time.unwrap_or_default())
            ),
            Stopped::RequestIsOver => "the connection has lasted as long as it may; the server's \
                                       --request-timeout raises that"
                .into(),
            Stopped::TooMuchOutput => format!(
                "it wrote more than {}; the server's --output-limit raises that",
                self.output
            ),
            Stopped::Failed(error) => format!("the server cannot keep its output: {error}"),
        }
    }
}

/// Returns the earlier of two deadlines: `limit` from now, and the deadline of the connection.
fn sooner(limit: Option<Duration>, connection: Option<Instant>) -> Option<Instant> {
    let end = limit.and_then(|limit| Instant::now().checked_add(limit));
    match (end, connection) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
