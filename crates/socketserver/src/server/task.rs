//! What a concurrency model is given to serve, and what comes of that.

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

/// A request that a concurrency model is to serve.
pub trait Task: Send + 'static {
    /// Serves it to its end, and frees its place; or up to a pause, in which the handler has
    /// nothing to do until its peer sends more.
    #[must_use]
    fn run(self: Box<Self>) -> Option<Box<dyn Suspended>>;
    /// The parent's side, before the fork: makes ready what the child takes over.
    fn prepare_fork(&self);
    /// The child's side of a fork: serves it to its end, and leaves the books to the parent.
    /// Returns the exit code.
    fn run_in_child(self) -> i32;
    /// The parent's side: closes its copy of the request and keeps the place.
    fn leave_to_child(self) -> ChildSlot;
    /// What is known of it.
    fn info(&self) -> &RequestInfo;
    /// What whoever serves it is called after.
    #[cfg(feature = "green")]
    fn label(&self) -> Arc<RequestLabel>;
}

/// A request, as a report about whoever serves it names it; put into words by that report only.
#[cfg(feature = "green")]
pub type RequestLabel = dyn fmt::Display + Send + Sync;

/// A request that has nothing to do until its peer sends more: its handler has returned and is to be
/// called again then, or there is none yet, as the peer has not said who it is.
pub trait Suspended: Send {
    /// What is waited for.
    fn socket(&self) -> BorrowedFd<'_>;
    /// What parks whoever waits, if it is not the kernel.
    fn park(&self) -> Option<&dyn Park>;
    /// When the pause is over in any case.
    fn until(&self) -> Option<Instant>;
    /// What is known of it.
    fn info(&self) -> &RequestInfo;
    /// What whoever serves it is called after.
    #[cfg(feature = "green")]
    fn label(&self) -> Arc<RequestLabel>;
    /// Waits here.
    fn wait(&self) -> io::Result<()>;
    /// Goes on, or ends the request, if the wait has failed.
    fn step(self: Box<Self>, waited: io::Result<()>) -> Progress;
}

impl dyn Suspended {
    /// Goes on, up to the next pause or to the end.
    #[must_use]
    pub(crate) fn resume(self: Box<Self>, waited: io::Result<()>) -> Option<Box<dyn Suspended>> {
        catch_stray_panic(|| self.step(waited).paused())
    }
}

/// Waits on this thread, as often as it takes to end the request.
pub(crate) fn wait_to_end(mut pause: Option<Box<dyn Suspended>>) {
    while let Some(waiting) = pause {
        let waited = waiting.wait();
        pause = waiting.resume(waited);
    }
}

/// What serving came to, for now.
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

    /// Goes on to the end, as often as it is paused.
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

/// What a request that was handed to a worker came to.
#[derive(Debug)]
pub enum Outcome {
    Ended(EndReason),
    /// No handler was made for it.
    Rejected(Rejection),
}

impl Outcome {
    /// A child tells its parent by this code that its client broke the protocol.
    const PROTOCOL_ERROR: i32 = 63;
    /// What a child refuses is told to its parent by a code from here on.
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

    /// What a child has refused that exits with this code.
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

/// The parent's hold on a request that a child serves.
pub struct ChildSlot(pub(super) RequestGuard);

impl ChildSlot {
    /// From now on the request is cancelled by a signal to its child.
    pub(crate) fn served_by(&self, pidfd: OwnedFd) {
        self.0.served_by(pidfd);
    }

    /// Which request it is.
    pub(crate) fn info(&self) -> &RequestInfo {
        self.0.info()
    }

    /// The descriptor of that child.
    pub(crate) fn child(&self) -> Option<&OwnedFd> {
        self.0.child()
    }

    /// The child is gone.
    pub(crate) fn end(self, reason: EndReason) {
        end(&self.0, reason, 0, 0);
    }

    /// The child has exited with this code.
    pub(crate) fn exited(self, code: i32) {
        let (shared, info) = (self.0.shared(), self.0.info());
        // No handler can be taken for a rejection, whatever code it exits with, where there is none.
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

/// The last line of defence. Whatever belongs to the application is guarded where it is called; if
/// a panic gets here all the same, it ends the request and not the thread, the pool, or the server.
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
