//! One request from `finish_request` to its end, on whatever thread or process was chosen for it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::controller::{Record, RequestId, Shared};
#[cfg(feature = "proxy")]
use crate::BadProxyHeader;
use crate::address::Address;
use crate::event::{EndReason, Ended, Event, Refusal};
use crate::failure::{HandlerFailure, Stage, contain, discard, guarded};
use crate::park::Park;
use crate::socket::Socket;
use crate::{Connection, Datagram, RequestHandler, RequestInfo, Result};

/// What a transport hands to a handler; implemented by [`Connection`] and [`Datagram`] only.
pub trait Request: sealed::Request {}

impl Request for Connection {}
impl Request for Datagram {}

pub(crate) mod sealed {
    use super::{
        Address, BorrowedFd, End, Instant, OwnedFd, Park, Record, RequestId, Socket, Weak, io,
    };
    use crate::socket::Cut;

    pub trait Request: Sized + Send + 'static {
        fn id(&self) -> RequestId;
        fn peer(&self) -> &Address;
        fn socket(&self) -> Option<Weak<Socket>>;
        /// Bytes received and sent.
        fn meters(&self) -> (u64, u64);
        /// The peer went away.
        fn is_lost(&self) -> bool;
        /// Why this server cut it, if it did.
        fn cut(&self) -> Option<Cut>;
        /// The handler has asked to be called again.
        fn take_keep_alive(&mut self) -> bool;
        /// There is something to read that has left the kernel already.
        fn has_buffered(&mut self) -> bool;
        /// When a pause that begins now is over in any case.
        fn pause_until(&self) -> Option<Instant>;
        /// Waits for something to read, or the end of it; may fail early as `Interrupted`.
        fn wait_readable(&self, until: Option<Instant>) -> io::Result<()>;
        /// From now on the input has an end.
        fn end_input(&self);
        fn as_fd(&self) -> BorrowedFd<'_>;
        fn park(&self) -> Option<&dyn Park>;
        /// What comes before there is a handler; see [`crate::preamble`].
        fn preamble(&mut self, record: &mut Record) -> Result<(), End>;
        /// Closes what no handler will see, from a worker. Waits for a bounded time, and only for
        /// one that is told something.
        fn turn_away(self, notice: &[u8]);
        fn shutdown_request(&mut self);
        /// What is to be closed without waiting for anything, if it is its own.
        fn refuse(self) -> Option<OwnedFd>;
        /// Closes so that nothing written is lost; may wait for the peer, for a bounded time.
        fn close_request(self);
    }
}

/// A request that a concurrency model is to serve.
pub trait Task: Send + 'static {
    /// Serves it to its end, and frees its place; or up to a pause, in which the handler has
    /// nothing to do until its peer sends more.
    #[must_use]
    fn run(self: Box<Self>) -> Option<Box<dyn Pause>>;
    /// The child's side of a fork: serves it to its end, and leaves the books to the parent.
    /// Returns the exit code.
    fn run_in_child(self) -> i32;
    /// The parent's side: closes its copy of the request and keeps the place.
    fn leave_to_child(self) -> Place;
    /// What is known of it.
    fn info(&self) -> &RequestInfo;
}

/// A request whose handler has returned, and is to be called again when there is more to read.
pub trait Pause: Send {
    /// What is waited for.
    fn socket(&self) -> BorrowedFd<'_>;
    /// What parks whoever waits, if it is not the kernel.
    fn park(&self) -> Option<&dyn Park>;
    /// When the pause is over in any case.
    fn until(&self) -> Option<Instant>;
    /// What is known of it.
    fn info(&self) -> &RequestInfo;
    /// Waits here.
    fn wait(&self) -> io::Result<()>;
    /// Goes on: calls the handler again, or ends the request, if the wait has failed.
    #[must_use]
    fn resume(self: Box<Self>, waited: io::Result<()>) -> Option<Box<dyn Pause>>;
}

/// Waits on this thread, as often as it takes to end the request.
pub(crate) fn wait_to_end(mut pause: Option<Box<dyn Pause>>) {
    while let Some(waiting) = pause {
        let waited = waiting.wait();
        pause = waiting.resume(waited);
    }
}

/// The parent's hold on a request that a child serves.
pub struct Place(Record);

impl Place {
    /// From now on the request is cancelled by a signal to its child.
    pub(crate) fn served_by(&self, pidfd: OwnedFd) {
        self.0.served_by(pidfd);
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
            None => self.end(EndReason::Failed),
        }
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Place").field(self.0.info()).finish()
    }
}

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
        shielded(|| serve(self, false).paused())
    }

    fn run_in_child(self) -> i32 {
        let code = shielded(|| {
            let mut step = serve(Box::new(self), true);
            loop {
                match step {
                    Step::Paused(session) => {
                        let waited = session.wait();
                        step = session.after(waited);
                    }
                    Step::Over(end) => return Some(end.exit_code()),
                }
            }
        });
        code.unwrap_or(1)
    }

    fn leave_to_child(self) -> Place {
        drop(self.request);
        Place(self.record)
    }

    fn info(&self) -> &RequestInfo {
        self.record.info()
    }
}

/// A request and its handler.
struct Session<R, H> {
    request: R,
    handler: H,
    record: Record,
    /// The books are the parent's.
    in_child: bool,
    /// When the present pause is over in any case.
    until: Option<Instant>,
}

/// What serving came to, for now.
enum Step<R, H> {
    Paused(Box<Session<R, H>>),
    Over(End),
}

/// What a request that was handed to a worker came to.
#[derive(Debug)]
pub enum End {
    Ended(EndReason),
    /// No handler was made for it.
    Refused(Refusal),
}

impl End {
    /// What a child refuses is told to its parent by a code from here on.
    const REFUSED: i32 = 64;

    fn exit_code(&self) -> i32 {
        match self {
            Self::Ended(EndReason::Completed | EndReason::PeerGone) => 0,
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

impl<R: Request, H: RequestHandler<R>> Step<R, H> {
    fn paused(self) -> Option<Box<dyn Pause>> {
        match self {
            Self::Paused(session) => Some(session),
            Self::Over(_) => None,
        }
    }
}

fn serve<R, F, H>(job: Box<Job<R, F>>, in_child: bool) -> Step<R, H>
where
    R: Request,
    F: Fn() -> H,
    H: RequestHandler<R>,
{
    match Session::begin(job, in_child) {
        Ok(session) => session.handle(),
        Err(end) => Step::Over(end),
    }
}

impl<R: Request, H: RequestHandler<R>> Session<R, H> {
    /// Lets the preamble pass, makes the handler and sets it up.
    ///
    /// On a stack frame of its own: what is moved around here would otherwise stay on the stack for
    /// as long as the handler runs, and a coroutine's stack should fit into a page.
    #[inline(never)]
    #[expect(
        clippy::boxed_local,
        reason = "it would be on the frame of the caller otherwise"
    )]
    fn begin<F: Fn() -> H>(job: Box<Job<R, F>>, in_child: bool) -> Result<Box<Self>, End> {
        let Job {
            mut request,
            mut record,
            factory,
        } = *job;
        if let Err(end) = request.preamble(&mut record) {
            return Err(turn_away(request, record, in_child, end));
        }
        record.shared().emit(&Event::Started(record.info()));
        let handler = match attempt(Stage::Factory, || Ok(factory())) {
            Ok(handler) => handler,
            Err(failure) => {
                let reason = reason(Some(&failure), &request);
                let reason = close(request, record, in_child, reason, Some(&failure));
                discard(failure);
                return Err(End::Ended(reason));
            }
        };
        let mut session = Box::new(Self {
            request,
            handler,
            record,
            in_child,
            until: None,
        });
        let own = &mut *session;
        match attempt(Stage::Setup, || own.handler.setup(&mut own.request)) {
            Ok(()) => Ok(session),
            failed => Err(End::Ended(session.end(failed, None))),
        }
    }

    fn handle(mut self: Box<Self>) -> Step<R, H> {
        loop {
            let own = &mut *self;
            let handled = attempt(Stage::Handle, || own.handler.handle(&mut own.request));
            if handled.is_err() || !own.request.take_keep_alive() || own.request.cut().is_some() {
                return Step::Over(End::Ended(self.finish(handled, None)));
            }
            if !own.request.has_buffered() {
                return self.pause();
            }
        }
    }

    fn pause(mut self: Box<Self>) -> Step<R, H> {
        self.until = self.request.pause_until();
        self.record.set_paused(true);
        if self.record.shared().lifecycle.is_draining() {
            // What is there is read, and then the handler finds the end.
            self.request.end_input();
        }
        Step::Paused(self)
    }

    fn after(self: Box<Self>, waited: io::Result<()>) -> Step<R, H> {
        self.record.set_paused(false);
        let reason = match waited {
            Ok(()) => return self.handle(),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => EndReason::TimedOut,
            Err(_) => self.request.cut().map_or(EndReason::PeerGone, Into::into),
        };
        Step::Over(End::Ended(self.finish(Ok(()), Some(reason))))
    }

    #[inline(never)]
    fn finish(
        mut self,
        handled: Result<(), HandlerFailure>,
        reason: Option<EndReason>,
    ) -> EndReason {
        let own = &mut self;
        let finished = attempt(Stage::Finish, || own.handler.finish(&mut own.request));
        let finished = match finished {
            // It meets again what has ended the handler already.
            Err(again)
                if handled.is_err()
                    && again.error().is_some()
                    && (own.request.is_lost() || own.request.cut().is_some()) =>
            {
                discard(again);
                Ok(())
            }
            finished => finished,
        };
        let served = then(own.record.shared(), handled, finished);
        self.end(served, reason)
    }

    /// Drops the handler and closes the request. The reason is known already if it was not the
    /// handler that ended it.
    fn end(self, served: Result<(), HandlerFailure>, known: Option<EndReason>) -> EndReason {
        let Self {
            request,
            handler,
            record,
            in_child,
            ..
        } = self;
        let dropped = attempt(Stage::Drop, || {
            drop(handler);
            Ok(())
        });
        let outcome = then(record.shared(), served, dropped);
        let reason = match (&outcome, known) {
            (Ok(()), Some(known)) => known,
            _ => reason(outcome.as_ref().err(), &request),
        };
        let reason = close(request, record, in_child, reason, outcome.as_ref().err());
        discard(outcome);
        reason
    }
}

impl<R: Request, H: RequestHandler<R>> Pause for Session<R, H> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.request.as_fd()
    }

    fn park(&self) -> Option<&dyn Park> {
        self.request.park()
    }

    fn until(&self) -> Option<Instant> {
        self.until
    }

    fn info(&self) -> &RequestInfo {
        self.record.info()
    }

    fn wait(&self) -> io::Result<()> {
        let lifecycle = &self.record.shared().lifecycle;
        loop {
            if !lifecycle.is_draining() {
                lifecycle.await_bell(self.request.as_fd(), self.until);
            }
            if lifecycle.is_draining() {
                self.request.end_input();
            }
            match self.request.wait_readable(self.until) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                waited => return waited,
            }
        }
    }

    fn resume(self: Box<Self>, waited: io::Result<()>) -> Option<Box<dyn Pause>> {
        shielded(|| self.after(waited).paused())
    }
}

/// The last line of defence. Whatever belongs to the application is guarded where it is called; if
/// a panic gets here all the same, it ends the request and not the thread, the pool, or the server.
fn shielded<T>(run: impl FnOnce() -> Option<T>) -> Option<T> {
    contain(run).unwrap_or_else(|cause| {
        let _ = contain(|| {
            tracing::error!(%cause, "a request ended in a panic outside of its handler");
        });
        None
    })
}

fn attempt<T>(stage: Stage, run: impl FnOnce() -> Result<T>) -> Result<T, HandlerFailure> {
    guarded(run).map_err(|cause| HandlerFailure::new(stage, cause))
}

/// The first failure is the one that counts; those in its wake are told, so as not to hide it.
fn then(
    shared: &Shared,
    first: Result<(), HandlerFailure>,
    next: Result<(), HandlerFailure>,
) -> Result<(), HandlerFailure> {
    match (first, next) {
        (Err(first), Err(later)) => {
            let hook = if later.stage() == Stage::Drop {
                "drop"
            } else {
                "finish"
            };
            shared.hook_failed(hook, later.into_cause());
            Err(first)
        }
        (first, next) => first.and(next),
    }
}

fn reason<R: Request>(failure: Option<&HandlerFailure>, request: &R) -> EndReason {
    match failure {
        None => request.cut().map_or(EndReason::Completed, Into::into),
        // It looks into the error, whose methods are the application's.
        Some(failure) => contain(|| classify(failure, request)).unwrap_or(EndReason::Failed),
    }
}

/// Tells of a failure, closes the request, and frees its place.
fn close<R: Request>(
    mut request: R,
    record: Record,
    in_child: bool,
    reason: EndReason,
    failure: Option<&HandlerFailure>,
) -> EndReason {
    if let Some(failure) = failure
        && !matches!(
            reason,
            EndReason::PeerGone | EndReason::Cancelled | EndReason::FellBehind
        )
    {
        record.shared().handle_error(record.info(), failure);
    }
    record.shared().emit(&Event::Closing(record.info()));
    request.shutdown_request();
    let (received, sent) = request.meters();
    request.close_request();
    if in_child {
        std::mem::forget(record);
    } else {
        end(&record, reason, received, sent);
    }
    reason
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
                self::end(&record, *reason, received, sent);
            }
        }
    }
    if in_child {
        std::mem::forget(record);
    }
    end
}

fn end(record: &Record, reason: EndReason, received: u64, sent: u64) {
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

fn classify<R: Request>(failure: &HandlerFailure, request: &R) -> EndReason {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotFound, TimedOut,
        UnexpectedEof,
    };
    let Some(error) = failure.error() else {
        return EndReason::Panicked;
    };
    if let Some(cut) = request.cut() {
        return cut.into();
    }
    match error.io_kind() {
        // Only if it was this peer: a handler may have other connections, and lose those.
        Some(
            BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | NotFound
            | TimedOut | UnexpectedEof,
        ) if request.is_lost() => EndReason::PeerGone,
        Some(TimedOut) => EndReason::TimedOut,
        _ => EndReason::Failed,
    }
}
