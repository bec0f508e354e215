//! One request from the creation of its handler to its end, on the thread or process that serves
//! it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
#[cfg(feature = "green")]
use std::sync::Arc;
use std::sync::Weak;
use std::time::Instant;

use super::handle::{RequestGuard, RequestId, Shared, Suspension};
#[cfg(feature = "green")]
use super::task::RequestLabel;
use super::task::{Outcome, Progress, Suspended, end};
use crate::address::Address;
use crate::event::{EndReason, Event};
use crate::park::{Park, give_way};
use crate::preamble::{PreambleProgress, PreambleState};
use crate::socket::Socket;
use crate::timeouts::earliest;
use crate::user_code::{HandlerError, Phase, call_user_code, catch_panic, drop_catching_panic};
use crate::{Connection, Datagram, RequestHandler, RequestInfo, Result};

/// The input of a handler; implemented by [`Connection`] and [`Datagram`] only.
pub trait Request: sealed::Request {}

impl Request for Connection {}
impl Request for Datagram {}

pub(crate) mod sealed {
    use super::{
        Address, BorrowedFd, EndReason, Instant, Outcome, OwnedFd, Park, PreambleProgress,
        PreambleState, RequestGuard, RequestId, Socket, Weak, io,
    };
    use crate::socket::CancelReason;
    use crate::waiting::{Awaited, Waiting};

    pub trait Request: Sized + Send + 'static {
        fn id(&self) -> RequestId;
        fn peer(&self) -> &Address;
        fn socket(&self) -> Option<Weak<Socket>>;
        /// Returns the wait record of the peer, and the kind of a wait that begins now.
        fn waiting(&self) -> Option<(&Waiting, Awaited)>;
        /// Returns the bytes received and sent.
        fn byte_counts(&self) -> (u64, u64);
        /// Returns true if the peer has disconnected.
        fn is_disconnected(&self) -> bool;
        /// Returns the reason for which the server cancelled the request, if it did.
        fn cut(&self) -> Option<CancelReason>;
        /// Returns the end reason, if the handler does not fail and the server does not cancel.
        fn verdict(&self) -> Option<EndReason>;
        /// Returns true if the handler has requested a suspension, and clears the request.
        fn take_suspend_request(&mut self) -> bool;
        /// Returns true if bytes to read have left the kernel already.
        fn has_buffered(&mut self) -> bool;
        /// Returns true if the beginning of a message was read, and its end was not.
        fn is_within_message(&self) -> bool;
        /// Returns the time at which a suspension that begins now ends in any case.
        fn suspend_until(&self) -> Option<Instant>;
        /// Handles that time. Returns true if only the handler is called, and the suspension may
        /// continue.
        fn wake(&mut self) -> bool;
        /// Returns true if an expired suspension may continue, because data was written to the peer
        /// since.
        fn is_written_to(&self, moved_before: u64) -> bool;
        /// Waits for bytes or the end of input. May return `Interrupted` early.
        fn wait_readable(&self, until: Option<Instant>) -> io::Result<()>;
        /// Returns true if bytes have arrived that were not read yet.
        fn has_input(&self) -> bool;
        /// Ends the input.
        fn end_input(&self);
        fn as_fd(&self) -> BorrowedFd<'_>;
        fn park(&self) -> Option<&dyn Park>;
        /// Runs the preamble; see [`crate::preamble`]. The progress is kept in `steps`, if there
        /// are any.
        fn preamble(
            &mut self,
            record: &mut RequestGuard,
            steps: &mut Option<Box<PreambleState>>,
        ) -> Result<PreambleProgress, Outcome>;
        /// Closes a request without a handler, from a worker. Blocks for a bounded time, and only
        /// if a message is sent.
        fn reject(self, notice: &[u8]);
        fn shutdown_request(&mut self);
        /// Returns the descriptor to close without blocking, if the request owns it.
        fn refuse(self) -> Option<OwnedFd>;
        /// Closes so that no written byte is lost. May wait for the peer, for a bounded time.
        fn close_request(self);
    }
}

/// A request and its handler.
pub(super) struct Session<R, H> {
    request: R,
    handler: H,
    record: RequestGuard,
    /// The parent keeps the counters.
    in_child: bool,
    /// The time at which the current suspension ends in any case.
    until: Option<Instant>,
    /// The bytes received and sent when the suspension began.
    moved: u64,
}

impl<R: Request, H: RequestHandler<R>> Session<R, H> {
    /// Makes the handler and sets it up.
    pub(super) fn begin(
        request: R,
        record: RequestGuard,
        factory: &impl Fn() -> H,
        in_child: bool,
    ) -> Result<Box<Self>, Outcome> {
        record.shared().emit(&Event::Started(record.info()));
        let handler = match attempt(Phase::Factory, || Ok(factory())) {
            Ok(handler) => handler,
            Err(failure) => {
                let reason = reason(Some(&failure), &request);
                let reason = close(request, record, in_child, reason, Some(&failure));
                drop_catching_panic(failure);
                return Err(Outcome::Ended(reason));
            }
        };
        let mut session = Box::new(Self {
            request,
            handler,
            record,
            in_child,
            until: None,
            moved: 0,
        });
        let own = &mut *session;
        match attempt(Phase::Setup, || own.handler.setup(&mut own.request)) {
            Ok(()) => Ok(session),
            failed => Err(Outcome::Ended(session.end(failed, None))),
        }
    }

    pub(super) fn handle(mut self: Box<Self>) -> Progress {
        loop {
            let own = &mut *self;
            let handled = attempt(Phase::Handle, || own.handler.handle(&mut own.request));
            if handled.is_err()
                || !own.request.take_suspend_request()
                || own.request.cut().is_some()
            {
                return Progress::Done(Outcome::Ended(self.finish(handled, None)));
            }
            if !own.request.has_buffered() {
                return self.pause();
            }
            give_way();
        }
    }

    fn pause(mut self: Box<Self>) -> Progress {
        self.until = self.request.suspend_until();
        let (received, sent) = self.request.byte_counts();
        self.moved = received + sent;
        if let Some((waiting, what)) = self.request.waiting() {
            waiting.begin(what);
        }
        // A drain serves a message that has begun to its end.
        let is_begun = self.request.is_within_message();
        self.record.set_suspension(if is_begun {
            Suspension::InPreamble
        } else {
            Suspension::Idle
        });
        let shared = self.record.shared();
        let is_newcomer = || shared.newcomer_until(self.record.info()).is_some();
        if !is_begun && shared.lifecycle.is_draining() && !is_newcomer() {
            // The handler reads the remaining bytes, and then the end of input.
            self.request.end_input();
        }
        Progress::Suspended(self)
    }

    #[inline(never)]
    fn finish(mut self, handled: Result<(), HandlerError>, reason: Option<EndReason>) -> EndReason {
        let own = &mut self;
        let finished = attempt(Phase::Finish, || own.handler.finish(&mut own.request));
        let finished = match finished {
            // The handler receives the error that has ended it already.
            Err(again)
                if handled.is_err()
                    && again.error().is_some()
                    && (own.request.is_disconnected() || own.request.cut().is_some()) =>
            {
                drop_catching_panic(again);
                Ok(())
            }
            finished => finished,
        };
        let served = then(own.record.shared(), handled, finished);
        self.end(served, reason)
    }

    /// Drops the handler and closes the request. `known` is the reason if the handler did not end
    /// it.
    fn end(self, served: Result<(), HandlerError>, known: Option<EndReason>) -> EndReason {
        let Self {
            request,
            handler,
            record,
            in_child,
            ..
        } = self;
        let dropped = attempt(Phase::Drop, || {
            drop(handler);
            Ok(())
        });
        let outcome = then(record.shared(), served, dropped);
        let reason = match (&outcome, known) {
            (Ok(()), Some(known)) => known,
            _ => reason(outcome.as_ref().err(), &request),
        };
        let reason = close(request, record, in_child, reason, outcome.as_ref().err());
        drop_catching_panic(outcome);
        reason
    }
}

impl<R: Request, H: RequestHandler<R>> Suspended for Session<R, H> {
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

    #[cfg(feature = "green")]
    fn label(&self) -> Arc<RequestLabel> {
        self.record.label()
    }

    fn wait(&self) -> io::Result<()> {
        let drains = !self.request.is_within_message();
        wait_for_input(&self.request, &self.record, self.until, drains)
    }

    fn step(mut self: Box<Self>, waited: io::Result<()>) -> Progress {
        if let Some((waiting, _)) = self.request.waiting() {
            waiting.end();
        }
        self.record.set_suspension(Suspension::None);
        let reason = match waited {
            Ok(()) => return self.handle(),
            // It has arrived while this process did not run, after a stop by a signal for example: what
            // is there is read before a timer is believed.
            Err(error) if error.kind() == io::ErrorKind::TimedOut && self.request.has_input() => {
                return self.handle();
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut && self.request.wake() => {
                return self.handle();
            }
            Err(error)
                if error.kind() == io::ErrorKind::TimedOut
                    && self.request.is_written_to(self.moved) =>
            {
                return self.pause();
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => EndReason::TimedOut,
            Err(_) => self
                .request
                .cut()
                .map_or(EndReason::Disconnected, Into::into),
        };
        Progress::Done(Outcome::Ended(self.finish(Ok(()), Some(reason))))
    }
}

/// Waits on this thread for bytes from the peer. A drain ends the wait if no data is lost by that.
pub(super) fn wait_for_input(
    request: &impl Request,
    record: &RequestGuard,
    until: Option<Instant>,
    drains: bool,
) -> io::Result<()> {
    let lifecycle = &record.shared().lifecycle;
    loop {
        let mut end = until;
        if drains {
            if !lifecycle.is_draining() {
                lifecycle.wait_readable_or_drain(request.as_fd(), until);
            }
            // Received bytes end the wait by themselves.
            if lifecycle.is_draining() && !request.has_input() {
                match record.shared().newcomer_until(record.info()) {
                    None => request.end_input(),
                    newcomer => end = earliest(until, newcomer),
                }
            }
        }
        match request.wait_readable(end) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut && end != until => {}
            waited => return waited,
        }
    }
}

fn attempt<T>(phase: Phase, run: impl FnOnce() -> Result<T>) -> Result<T, HandlerError> {
    call_user_code(run).map_err(|cause| HandlerError::new(phase, cause))
}

/// Keeps the first error. Later errors are reported, so that they do not hide it.
fn then(
    shared: &Shared,
    first: Result<(), HandlerError>,
    next: Result<(), HandlerError>,
) -> Result<(), HandlerError> {
    match (first, next) {
        (Err(first), Err(later)) => {
            let hook = if later.phase() == Phase::Drop {
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

fn reason<R: Request>(failure: Option<&HandlerError>, request: &R) -> EndReason {
    match failure {
        None => match request.cut() {
            Some(cut) => cut.into(),
            None => request.verdict().unwrap_or(EndReason::Completed),
        },
        // The classification calls methods of the error, which are application code.
        Some(failure) => catch_panic(|| classify(failure, request)).unwrap_or(EndReason::Failed),
    }
}

/// Reports an error, closes the request, and frees its slot.
fn close<R: Request>(
    mut request: R,
    record: RequestGuard,
    in_child: bool,
    reason: EndReason,
    failure: Option<&HandlerError>,
) -> EndReason {
    if let Some(failure) = failure
        && !matches!(
            reason,
            EndReason::Disconnected
                | EndReason::Cancelled
                | EndReason::SlowConsumer
                | EndReason::Displaced
        )
    {
        record.shared().handle_error(record.info(), failure);
    }
    record.shared().emit(&Event::Closing(record.info()));
    request.shutdown_request();
    let (received, sent) = request.byte_counts();
    request.close_request();
    if in_child {
        std::mem::forget(record);
    } else {
        end(&record, reason, received, sent);
    }
    reason
}

fn classify<R: Request>(failure: &HandlerError, request: &R) -> EndReason {
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
    match crate::error::io_kind(error) {
        // Counts only for this peer: a handler may have other connections, and lose those.
        Some(
            BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | NotFound
            | TimedOut | UnexpectedEof,
        ) if request.is_disconnected() => EndReason::Disconnected,
        Some(TimedOut) => EndReason::TimedOut,
        _ => EndReason::Failed,
    }
}
