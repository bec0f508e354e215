//! What a concurrency model is given to serve, and what comes of that.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
#[cfg(feature = "green")]
use std::sync::Arc;
use std::time::Instant;

use super::controller::Record;
#[cfg(feature = "proxy")]
use crate::BadProxyHeader;
use crate::RequestInfo;
use crate::event::{EndReason, Ended, Refusal};
use crate::failure::contain;
use crate::park::Park;

/// A request that a concurrency model is to serve.
pub trait Task: Send + 'static {
    /// Serves it to its end, and frees its place; or up to a pause, in which the handler has
    /// nothing to do until its peer sends more.
    #[must_use]
    fn run(self: Box<Self>) -> Option<Box<dyn Pause>>;
    /// The parent's side, before the fork: makes ready what the child takes over.
    fn prepare_fork(&self);
    /// The child's side of a fork: serves it to its end, and leaves the books to the parent.
    /// Returns the exit code.
    fn run_in_child(self) -> i32;
    /// The parent's side: closes its copy of the request and keeps the place.
    fn leave_to_child(self) -> Place;
    /// What is known of it.
    fn info(&self) -> &RequestInfo;
    /// What whoever serves it is called after.
    #[cfg(feature = "green")]
    fn subject(&self) -> Arc<Subject>;
}

/// A request, as a report about whoever serves it names it; put into words by that report only.
#[cfg(feature = "green")]
pub type Subject = dyn fmt::Display + Send + Sync;

/// A request that has nothing to do until its peer sends more: its handler has returned and is to be
/// called again then, or there is none yet, as the peer has not said who it is.
pub trait Pause: Send {
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
    fn subject(&self) -> Arc<Subject>;
    /// Waits here.
    fn wait(&self) -> io::Result<()>;
    /// Goes on, or ends the request, if the wait has failed.
    fn go_on(self: Box<Self>, waited: io::Result<()>) -> Step;
}

impl dyn Pause {
    /// Goes on, up to the next pause or to the end.
    #[must_use]
    pub(crate) fn resume(self: Box<Self>, waited: io::Result<()>) -> Option<Box<dyn Pause>> {
        shielded(|| self.go_on(waited).paused())
    }
}

/// Waits on this thread, as often as it takes to end the request.
pub(crate) fn wait_to_end(mut pause: Option<Box<dyn Pause>>) {
    while let Some(waiting) = pause {
        let waited = waiting.wait();
        pause = waiting.resume(waited);
    }
}

/// What serving came to, for now.
pub enum Step {
    Paused(Box<dyn Pause>),
    Over(End),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(pause) => f.debug_tuple("Paused").field(pause.info()).finish(),
            Self::Over(end) => f.debug_tuple("Over").field(end).finish(),
        }
    }
}

impl Step {
    pub(super) fn paused(self) -> Option<Box<dyn Pause>> {
        match self {
            Self::Paused(pause) => Some(pause),
            Self::Over(_) => None,
        }
    }

    /// Goes on to the end, as often as it is paused.
    pub(super) fn finish(self) -> End {
        let mut step = self;
        loop {
            match step {
                Self::Paused(pause) => {
                    let waited = pause.wait();
                    step = pause.go_on(waited);
                }
                Self::Over(end) => return end,
            }
        }
    }
}

/// What a request that was handed to a worker came to.
#[derive(Debug)]
pub enum End {
    Ended(EndReason),
    /// No handler was made for it.
    Refused(Refusal),
}

impl End {
    /// A child tells its parent by this code that its client broke the protocol.
    const PROTOCOL_ERROR: i32 = 63;
    /// What a child refuses is told to its parent by a code from here on.
    const REFUSED: i32 = 64;

    pub(super) fn exit_code(&self) -> i32 {
        match self {
            Self::Ended(EndReason::Completed | EndReason::PeerGone) => 0,
            Self::Ended(EndReason::ProtocolError) => Self::PROTOCOL_ERROR,
            Self::Ended(_) => 1,
            Self::Refused(refusal) => {
                let codes = Self::REFUSED..=i32::from(u8::MAX);
                let is_its = |code: &i32| Self::refusal(*code).as_ref() == Some(refusal);
                codes.into_iter().find(is_its).unwrap_or(1)
            }
        }
    }

    /// What a child has refused that exits with this code.
    fn refusal(code: i32) -> Option<Refusal> {
        Some(match code.checked_sub(Self::REFUSED)? {
            0 => Refusal::Denied,
            1 => Refusal::PeerLimit,
            2 => Refusal::PeerRate,
            #[cfg(feature = "tls")]
            number @ 100.. => Refusal::Tls(crate::TlsFault::numbered(number - 100)?),
            #[cfg(feature = "proxy")]
            number => Refusal::ProxyHeader(BadProxyHeader::numbered(number - 3)?),
            #[cfg(not(feature = "proxy"))]
            _ => return None,
        })
    }
}

/// The parent's hold on a request that a child serves.
pub struct Place(pub(super) Record);

impl Place {
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
        // No handler can be taken for a refusal, whatever code it exits with, where there is none.
        let refusal = shared.preamble.may_refuse(info.peer());
        match refusal.then(|| End::refusal(code)).flatten() {
            Some(refusal) => shared.turned_away(info, &refusal),
            None if code == 0 => self.end(EndReason::Completed),
            None if code == End::PROTOCOL_ERROR => self.end(EndReason::ProtocolError),
            None => self.end(EndReason::Failed),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(self.0.info()).finish()
    }
}

/// The last line of defence. Whatever belongs to the application is guarded where it is called; if
/// a panic gets here all the same, it ends the request and not the thread, the pool, or the server.
pub(super) fn shielded<T>(run: impl FnOnce() -> Option<T>) -> Option<T> {
    contain(run).unwrap_or_else(|cause| {
        let _ = contain(|| {
            tracing::error!(%cause, "a request ended in a panic outside of its handler");
        });
        None
    })
}

pub(super) fn end(record: &Record, reason: EndReason, received: u64, sent: u64) {
    let info = record.info();
    record.set_ended();
    let ended = Ended {
        reason,
        received,
        sent,
        elapsed: info.age(),
    };
    record.shared().ended(info, &ended);
}
