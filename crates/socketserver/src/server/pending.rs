//! A request whose preamble (PROXY header, TLS handshake) is not complete.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::handle::{RequestGuard, Suspension};
use super::session::{Request, Session, wait_for_input};
#[cfg(feature = "green")]
use super::task::RequestLabel;
use super::task::{self, ChildSlot, Outcome, Progress, Suspended, Task, catch_stray_panic};
use crate::event::EndReason;
use crate::park::Park;
use crate::preamble::{PreambleProgress, PreambleState};
use crate::waiting::Awaited;
use crate::{RequestHandler, RequestInfo};

/// Makes a request's handler and sets it up. Every factory implements this trait. A server holds
/// its factory as this trait object, so that the server's type does not depend on the factory.
pub(crate) trait MakeSession<R>: Send + Sync {
    fn begin(
        &self,
        request: R,
        record: RequestGuard,
        in_child: bool,
    ) -> Result<Box<dyn ReadySession>, Outcome>;
}

impl<R, F, H> MakeSession<R> for F
where
    R: Request,
    F: Fn() -> H + Send + Sync,
    H: RequestHandler<R>,
{
    fn begin(
        &self,
        request: R,
        record: RequestGuard,
        in_child: bool,
    ) -> Result<Box<dyn ReadySession>, Outcome> {
        let session = Session::begin(request, record, self, in_child)?;
        Ok(session)
    }
}

/// A session whose handler is set up.
pub(crate) trait ReadySession {
    /// Calls the handler, up to its next suspension or its end.
    fn handle(self: Box<Self>) -> Progress;
}

impl<R: Request, H: RequestHandler<R>> ReadySession for Session<R, H> {
    fn handle(self: Box<Self>) -> Progress {
        Session::handle(self)
    }
}

pub(crate) struct AcceptedRequest<R> {
    pub(crate) request: R,
    pub(crate) record: RequestGuard,
    pub(crate) factory: Arc<dyn MakeSession<R>>,
}

impl<R: Request> Task for AcceptedRequest<R> {
    fn run(self: Box<Self>) -> Option<Box<dyn Suspended>> {
        catch_stray_panic(|| begin(self, None, false).paused())
    }

    fn run_in_child(self) -> i32 {
        let end = catch_stray_panic(|| Some(begin(Box::new(self), None, true).finish()));
        end.map_or(1, |end| end.exit_code())
    }

    fn prepare_fork(&self) {
        self.record.shared().preamble.prepare_fork();
    }

    fn leave_to_child(self) -> ChildSlot {
        drop(self.request);
        ChildSlot(self.record)
    }

    fn info(&self) -> &RequestInfo {
        self.record.info()
    }

    #[cfg(feature = "green")]
    fn label(&self) -> Arc<RequestLabel> {
        self.record.label()
    }
}

/// Runs the preamble, and the handler once the preamble is complete.
fn begin<R: Request>(
    job: Box<AcceptedRequest<R>>,
    steps: Option<Box<PreambleState>>,
    in_child: bool,
) -> Progress {
    match run_preamble(job, steps, in_child) {
        Ok(session) => session.handle(),
        Err(step) => step,
    }
}

/// Runs the preamble on the bytes received so far. Creates the session once the preamble is
/// complete.
///
/// Not inlined: the values that are moved here would otherwise stay on the stack while the handler
/// runs, and a coroutine's stack should fit into a page.
#[inline(never)]
fn run_preamble<R: Request>(
    mut job: Box<AcceptedRequest<R>>,
    mut steps: Option<Box<PreambleState>>,
    in_child: bool,
) -> Result<Box<dyn ReadySession>, Progress> {
    let heard = job.request.preamble(&mut job.record, &mut steps);
    if let Ok(PreambleProgress::Incomplete {
        until,
        has_sent_nothing,
    }) = heard
    {
        let arrival = Box::new(PendingRequest {
            job,
            steps,
            in_child,
            until,
            has_sent_nothing,
        });
        return Err(arrival.pause());
    }
    let AcceptedRequest {
        request,
        record,
        factory,
    } = *job;
    let end = match heard {
        Err(end) => reject(request, record, in_child, end),
        Ok(_) => match factory.begin(request, record, in_child) {
            Ok(session) => return Ok(session),
            Err(end) => end,
        },
    };
    Err(Progress::Done(end))
}

/// A request whose peer must send more before it gets a handler.
struct PendingRequest<R> {
    job: Box<AcceptedRequest<R>>,
    steps: Option<Box<PreambleState>>,
    /// The parent keeps the counters.
    in_child: bool,
    until: Option<Instant>,
    /// The peer has sent no byte, so a drain may end the request without loss.
    has_sent_nothing: bool,
}

impl<R: Request> PendingRequest<R> {
    fn pause(self: Box<Self>) -> Progress {
        let AcceptedRequest {
            request, record, ..
        } = &*self.job;
        if let Some((waiting, _)) = request.waiting() {
            waiting.begin(Awaited::Opening);
        }
        // A drain serves a request that has begun. Until the handler runs, it takes no pool thread.
        record.set_suspension(match self.has_sent_nothing {
            true => Suspension::Idle,
            false => Suspension::InPreamble,
        });
        let shared = record.shared();
        if self.has_sent_nothing
            && shared.lifecycle.is_draining()
            && shared.newcomer_until(record.info()).is_none()
        {
            request.end_input();
        }
        Progress::Suspended(self)
    }
}

impl<R: Request> Suspended for PendingRequest<R> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.job.request.as_fd()
    }

    fn park(&self) -> Option<&dyn Park> {
        self.job.request.park()
    }

    fn until(&self) -> Option<Instant> {
        self.until
    }

    fn info(&self) -> &RequestInfo {
        self.job.record.info()
    }

    #[cfg(feature = "green")]
    fn label(&self) -> Arc<RequestLabel> {
        self.job.record.label()
    }

    fn wait(&self) -> io::Result<()> {
        wait_for_input(
            &self.job.request,
            &self.job.record,
            self.until,
            self.has_sent_nothing,
        )
    }

    fn step(self: Box<Self>, waited: io::Result<()>) -> Progress {
        if let Some((waiting, _)) = self.job.request.waiting() {
            waiting.end();
        }
        self.job.record.set_suspension(Suspension::None);
        let Self {
            job,
            steps,
            in_child,
            ..
        } = *self;
        match waited {
            Ok(()) => {}
            // The preamble step that waited turns the timeout into its own error.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(_) => {
                let cut = job.request.cut();
                let end = Outcome::Ended(cut.map_or(EndReason::Disconnected, Into::into));
                let AcceptedRequest {
                    request, record, ..
                } = *job;
                return Progress::Done(reject(request, record, in_child, end));
            }
        }
        begin(job, steps, in_child)
    }
}

/// Closes a request without a handler, reports it, and frees its slot.
fn reject<R: Request>(request: R, record: RequestGuard, in_child: bool, end: Outcome) -> Outcome {
    let shared = record.shared();
    match &end {
        Outcome::Rejected(rejection) => {
            // A child reports this, too, because only the child knows the client.
            shared.rejected(record.info(), rejection);
            request.reject(shared.preamble.notice(rejection));
        }
        Outcome::Ended(reason) => {
            let (received, sent) = request.byte_counts();
            drop(request);
            if !in_child {
                task::end(&record, *reason, received, sent);
            }
        }
    }
    if in_child {
        std::mem::forget(record);
    }
    end
}
