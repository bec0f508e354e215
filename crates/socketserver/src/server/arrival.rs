//! A request before it has a handler: what comes first is heard, and then it gets one.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::controller::{Paused, Record};
use super::session::{Request, Session, wait_for_input};
#[cfg(feature = "green")]
use super::task::Subject;
use super::task::{self, End, Pause, Place, Step, Task, shielded};
use crate::event::EndReason;
use crate::park::Park;
use crate::preamble::{Heard, Steps};
use crate::waiting::Awaited;
use crate::{RequestHandler, RequestInfo};

pub(crate) struct Job<R, F> {
    pub(crate) request: R,
    pub(crate) record: Record,
    pub(crate) factory: Arc<F>,
}

impl<R, F, H> Task for Job<R, F>
where
    R: Request,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<R>,
{
    fn run(self: Box<Self>) -> Option<Box<dyn Pause>> {
        shielded(|| begin(self, false).paused())
    }

    fn run_in_child(self) -> i32 {
        let end = shielded(|| Some(begin(Box::new(self), true).finish()));
        end.map_or(1, |end| end.exit_code())
    }

    fn prepare_fork(&self) {
        self.record.shared().preamble.prepare_fork();
    }

    fn leave_to_child(self) -> Place {
        drop(self.request);
        Place(self.record)
    }

    fn info(&self) -> &RequestInfo {
        self.record.info()
    }

    #[cfg(feature = "green")]
    fn subject(&self) -> Arc<Subject> {
        self.record.subject()
    }
}

fn begin<R, F, H>(job: Box<Job<R, F>>, in_child: bool) -> Step
where
    R: Request,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<R>,
{
    match hear(job, None, in_child) {
        Ok(session) => session.handle(),
        Err(step) => step,
    }
}

/// Hears what there is, and if that is all, makes the session.
///
/// On a stack frame of its own: what is moved around here would otherwise stay on the stack for as
/// long as the handler runs, and a coroutine's stack should fit into a page.
#[inline(never)]
fn hear<R, F, H>(
    mut job: Box<Job<R, F>>,
    mut steps: Option<Box<Steps>>,
    in_child: bool,
) -> Result<Box<Session<R, H>>, Step>
where
    R: Request,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<R>,
{
    let heard = job.request.preamble(&mut job.record, &mut steps);
    if let Ok(Heard::Part { until, is_silent }) = heard {
        let arrival = Box::new(Arrival {
            job,
            steps,
            in_child,
            until,
            is_silent,
        });
        return Err(arrival.pause());
    }
    let Job {
        request,
        record,
        factory,
    } = *job;
    let end = match heard {
        Err(end) => turn_away(request, record, in_child, end),
        Ok(_) => match Session::begin(request, record, &*factory, in_child) {
            Ok(session) => return Ok(session),
            Err(end) => end,
        },
    };
    Err(Step::Over(end))
}

/// A request whose peer has to say more before there is a handler for it.
struct Arrival<R, F> {
    job: Box<Job<R, F>>,
    steps: Option<Box<Steps>>,
    /// The books are the parent's.
    in_child: bool,
    until: Option<Instant>,
    /// It has said nothing yet: nothing is lost if a drain ends it.
    is_silent: bool,
}

impl<R, F, H> Arrival<R, F>
where
    R: Request,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<R>,
{
    fn pause(self: Box<Self>) -> Step {
        let Job {
            request, record, ..
        } = &*self.job;
        if let Some((waiting, _)) = request.waiting() {
            waiting.begin(Awaited::Opening);
        }
        // Who has begun is served to the end by a drain, and takes no place in a pool meanwhile.
        record.set_paused(match self.is_silent {
            true => Paused::Idle,
            false => Paused::Begun,
        });
        let shared = record.shared();
        if self.is_silent
            && shared.lifecycle.is_draining()
            && shared.newcomer_until(record.info()).is_none()
        {
            request.end_input();
        }
        Step::Paused(self)
    }
}

impl<R, F, H> Pause for Arrival<R, F>
where
    R: Request,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<R>,
{
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
    fn subject(&self) -> Arc<Subject> {
        self.job.record.subject()
    }

    fn wait(&self) -> io::Result<()> {
        wait_for_input(
            &self.job.request,
            &self.job.record,
            self.until,
            self.is_silent,
        )
    }

    fn go_on(self: Box<Self>, waited: io::Result<()>) -> Step {
        if let Some((waiting, _)) = self.job.request.waiting() {
            waiting.end();
        }
        self.job.record.set_paused(Paused::No);
        let Self {
            job,
            steps,
            in_child,
            ..
        } = *self;
        match waited {
            Ok(()) => {}
            // What was missing knows what that means.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(_) => {
                let cut = job.request.cut();
                let end = End::Ended(cut.map_or(EndReason::PeerGone, Into::into));
                let Job {
                    request, record, ..
                } = *job;
                return Step::Over(turn_away(request, record, in_child, end));
            }
        }
        match hear(job, steps, in_child) {
            Ok(session) => session.handle(),
            Err(step) => step,
        }
    }
}

/// Closes a request that no handler will see, tells of it, and frees its place.
fn turn_away<R: Request>(request: R, record: Record, in_child: bool, end: End) -> End {
    let shared = record.shared();
    match &end {
        End::Refused(refusal) => {
            // In a child, too: it alone knows who this is about.
            shared.turned_away(record.info(), refusal);
            request.turn_away(shared.preamble.notice(refusal));
        }
        End::Ended(reason) => {
            let (received, sent) = request.meters();
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
