//! The work that a concurrency model receives, and its result.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
#[cfg(feature = "green")]
use std::sync::Arc;
use std::time::Instant;

use super::handle::RequestGuard;
#[cfg(feature = "proxy")]
use crate::ProxyHeaderError;
use crate::RequestInfo;
use crate::event::{EndReason, Rejection, RequestSummary};
use crate::park::Park;
use crate::user_code::catch_panic;

/// A request that a concurrency model serves.
pub trait Task: Send + 'static {
    /// Serves the request to its end, and frees its slot; or up to a suspension, in which the
    /// handler waits for its peer.
    #[must_use]
    fn run(self: Box<Self>) -> Option<Box<dyn Suspended>>;
    /// Prepares, in the parent before the fork, the resources that the child takes over.
    fn prepare_fork(&self);
    /// Serves the request to its end in a forked child, and leaves the counters to the parent.
    /// Returns the exit code.
    fn run_in_child(self) -> i32;
    /// Closes the parent's copy of the request after the fork, and keeps the slot.
    fn leave_to_child(self) -> ChildSlot;
    /// Returns the facts about the request.
    fn info(&self) -> &RequestInfo;
    /// Returns the label of the coroutine that serves the request.
    #[cfg(feature = "green")]
    fn label(&self) -> Arc<RequestLabel>;
}

/// The label of a request in reports. It is formatted only when a report is written.
#[cfg(feature = "green")]
pub type RequestLabel = dyn fmt::Display + Send + Sync;

/// A suspended request, which waits for bytes from its peer. Its handler has returned and is called
/// again then, or the preamble is not complete.
pub trait Suspended: Send {
    /// Returns the socket that the request waits for.
    fn socket(&self) -> BorrowedFd<'_>;
    /// Returns the parker for the wait, if it is not the kernel.
    fn park(&self) -> Option<&dyn Park>;
    /// Returns the time at which the suspension ends in any case.
    fn until(&self) -> Option<Instant>;
    /// Returns the facts about the request.
    fn info(&self) -> &RequestInfo;
    /// Returns the label of the coroutine that serves the request.
    #[cfg(feature = "green")]
    fn label(&self) -> Arc<RequestLabel>;
    /// Waits on this thread.
    fn wait(&self) -> io::Result<()>;
    /// Continues, or ends the request if the wait has failed.
    fn step(self: Box<Self>, waited: io::Result<()>) -> Progress;
}

impl dyn Suspended {
    /// Continues up to the next suspension or to the end.
    #[must_use]
    pub(crate) fn resume(self: Box<Self>, waited: io::Result<()>) -> Option<Box<dyn Suspended>> {
        catch_stray_panic(|| self.step(waited).paused())
    }
}

/// Waits on this thread, for each suspension, until the request ends.
pub(crate) fn wait_to_end(mut pause: Option<Box<dyn Suspended>>) {
    while let Some(waiting) = pause {
        let waited = waiting.wait();
        pause = waiting.resume(waited);
    }
}

/// The result of running a request up to its next suspension or its end.
pub enum Progress {
    Suspended(Box<dyn Suspended>),
    Done(Outcome),
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suspended(pause) => f.debug_tuple("Paused").field(pause.info()).finish(),
            Self::Done(end) => f.debug_tuple("Over").field(end).finish(),
        }
    }
}

impl Progress {
    pub(super) fn paused(self) -> Option<Box<dyn Suspended>> {
        match self {
            Self::Suspended(pause) => Some(pause),
            Self::Done(_) => None,
        }
    }

    /// Runs the request to its end, through all its suspensions.
    pub(super) fn finish(self) -> Outcome {
        let mut step = self;
        loop {
            match step {
                Self::Suspended(pause) => {
                    let waited = pause.wait();
                    step = pause.step(waited);
                }
                Self::Done(end) => return end,
            }
        }
    }
}

/// The result of a request that was dispatched to a worker.
#[derive(Debug)]
pub enum Outcome {
    Ended(EndReason),
    /// The request got no handler.
    Rejected(Rejection),
}

impl Outcome {
    /// The exit code of a child whose client violated the protocol.
    const PROTOCOL_ERROR: i32 = 63;
    /// Exit codes of children from this one on encode a rejection.
    const REFUSED: i32 = 64;

    pub(super) fn exit_code(&self) -> i32 {
        match self {
            Self::Ended(EndReason::Completed | EndReason::Disconnected) => 0,
            Self::Ended(EndReason::ProtocolError) => Self::PROTOCOL_ERROR,
            Self::Ended(_) => 1,
            Self::Rejected(rejection) => {
                let codes = Self::REFUSED..=i32::from(u8::MAX);
                let is_its = |code: &i32| Self::rejection(*code).as_ref() == Some(rejection);
                codes.into_iter().find(is_its).unwrap_or(1)
            }
        }
    }

    /// Returns the rejection that an exit code encodes.
    fn rejection(code: i32) -> Option<Rejection> {
        Some(match code.checked_sub(Self::REFUSED)? {
            0 => Rejection::Denied,
            1 => Rejection::PeerLimit,
            2 => Rejection::PeerRate,
            #[cfg(feature = "tls")]
            number @ 100.. => Rejection::Tls(crate::TlsHandshakeError::numbered(number - 100)?),
            #[cfg(feature = "proxy")]
            number => Rejection::ProxyHeader(ProxyHeaderError::numbered(number - 3)?),
            #[cfg(not(feature = "proxy"))]
            _ => return None,
        })
    }
}

/// The parent's guard of a request that a child serves.
pub struct ChildSlot(pub(super) RequestGuard);

impl ChildSlot {
    /// Records the child, so that a cancellation sends a signal to it.
    pub(crate) fn served_by(&self, pidfd: OwnedFd) {
        self.0.served_by(pidfd);
    }

    /// Returns the facts about the request.
    pub(crate) fn info(&self) -> &RequestInfo {
        self.0.info()
    }

    /// Returns the descriptor of the child.
    pub(crate) fn child(&self) -> Option<&OwnedFd> {
        self.0.child()
    }

    /// Ends the request after its child is gone.
    pub(crate) fn end(self, reason: EndReason) {
        end(&self.0, reason, 0, 0);
    }

    /// Ends the request after its child has exited with this code.
    pub(crate) fn exited(self, code: i32) {
        let (shared, info) = (self.0.shared(), self.0.info());
        // If the server rejects nothing in children, an exit code of a handler never counts as a
        // rejection.
        let rejection = shared.preamble.may_refuse(info.peer());
        match rejection.then(|| Outcome::rejection(code)).flatten() {
            Some(rejection) => shared.rejected(info, &rejection),
            None if code == 0 => self.end(EndReason::Completed),
            None if code == Outcome::PROTOCOL_ERROR => self.end(EndReason::ProtocolError),
            None => self.end(EndReason::Failed),
        }
    }
}

impl fmt::Debug for ChildSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(self.0.info()).finish()
    }
}

/// Catches a panic that escaped the guards around application code. The panic then ends the
/// request, and not the thread, the pool, or the server.
pub(super) fn catch_stray_panic<T>(run: impl FnOnce() -> Option<T>) -> Option<T> {
    catch_panic(run).unwrap_or_else(|cause| {
        let _ = catch_panic(|| {
            tracing::error!(
                cause = format_args!("{cause:#}"),
                "a request ended in a panic outside of its handler"
            );
        });
        None
    })
}

pub(super) fn end(record: &RequestGuard, reason: EndReason, received: u64, sent: u64) {
    let info = record.info();
    record.set_ended();
    let ended = RequestSummary {
        reason,
        received,
        sent,
        elapsed: info.age(),
    };
    record.shared().ended(info, &ended);
}
