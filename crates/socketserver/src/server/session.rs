//! One request from `finish_request` to its end, on whatever thread or process was chosen for it.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use super::controller::{Record, RequestId};
use crate::address::Address;
use crate::event::{EndReason, Ended, Event};
use crate::failure::{HandlerFailure, Stage, guarded};
use crate::socket::Socket;
use crate::{Connection, Datagram, RequestHandler, RequestInfo, Result};

/// What a transport hands to a handler; implemented by [`Connection`] and [`Datagram`] only.
pub trait Request: sealed::Request {}

impl Request for Connection {}
impl Request for Datagram {}

pub(crate) mod sealed {
    use super::{Address, RequestId, Socket, Weak};

    pub trait Request: Sized + Send + 'static {
        fn id(&self) -> RequestId;
        fn peer(&self) -> &Address;
        fn socket(&self) -> Option<Weak<Socket>>;
        /// Bytes received and sent.
        fn meters(&self) -> (u64, u64);
        /// The peer went away.
        fn is_lost(&self) -> bool;
        /// This server cut it.
        fn is_cancelled(&self) -> bool;
        fn shutdown_request(&mut self);
        /// Closes without waiting for anything.
        fn refuse(self);
        /// Closes so that nothing written is lost; may wait for the peer, for a bounded time.
        fn close_request(self);
    }
}
/// A request that a concurrency model is to serve.
pub trait Task: Send + 'static {
    /// Serves it to its end, and frees its place.
    fn run(self);
    /// The child's side of a fork: serves it, and leaves the books to the parent. Returns the exit
    /// code.
    fn run_in_child(self) -> i32;
    /// The parent's side: closes its copy of the request and keeps the place.
    fn leave_to_child(self) -> Place;
    /// What is known of it.
    fn info(&self) -> &RequestInfo;
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
    fn run(self) {
        let (reason, (received, sent)) = serve(self.request, &*self.factory, &self.record);
        end(&self.record, reason, received, sent);
    }

    fn run_in_child(self) -> i32 {
        let record = ManuallyDrop::new(self.record);
        let (reason, _) = serve(self.request, &*self.factory, &record);
        match reason {
            EndReason::Completed | EndReason::PeerGone => 0,
            _ => 1,
        }
    }

    fn leave_to_child(self) -> Place {
        drop(self.request);
        Place(self.record)
    }

    fn info(&self) -> &RequestInfo {
        self.record.info()
    }
}

fn end(record: &Record, reason: EndReason, received: u64, sent: u64) {
    let info = record.info();
    let ended = Ended {
        reason,
        received,
        sent,
        elapsed: info.age(),
    };
    record.shared().ended(info, &ended);
}

fn serve<R, F, H>(mut request: R, factory: &F, record: &Record) -> (EndReason, (u64, u64))
where
    R: Request,
    F: Fn() -> H,
    H: RequestHandler<R>,
{
    let (shared, info) = (record.shared(), record.info());
    shared.emit(&Event::Started(info));
    let outcome = finish_request(&mut request, factory, record);
    let reason = match &outcome {
        Ok(()) if request.is_cancelled() => EndReason::Cancelled,
        Ok(()) => EndReason::Completed,
        Err(failure) => classify(failure, &request),
    };
    if let Err(failure) = &outcome
        && !matches!(reason, EndReason::PeerGone | EndReason::Cancelled)
    {
        shared.handle_error(info, failure);
    }
    shared.emit(&Event::Closing(info));
    request.shutdown_request();
    let meters = request.meters();
    request.close_request();
    (reason, meters)
}

/// `setup`, `handle`, `finish`: errors and panics of each come back as a value.
fn finish_request<R, F, H>(
    request: &mut R,
    factory: &F,
    record: &Record,
) -> Result<(), HandlerFailure>
where
    R: Request,
    F: Fn() -> H,
    H: RequestHandler<R>,
{
    fn attempt<T>(stage: Stage, run: impl FnOnce() -> Result<T>) -> Result<T, HandlerFailure> {
        guarded(run).map_err(|cause| HandlerFailure::new(stage, cause))
    }
    // The first failure is the one that counts; those in its wake are told, so as not to hide it.
    let then = |first: Result<(), HandlerFailure>, next: Result<(), HandlerFailure>| {
        if let (Err(_), Err(later)) = (&first, &next) {
            let hook = if later.stage() == Stage::Drop {
                "drop"
            } else {
                "finish"
            };
            record.shared().hook_failed(hook, later.cause());
        }
        first.and(next)
    };
    let mut handler = attempt(Stage::Factory, || Ok(factory()))?;
    let served = match attempt(Stage::Setup, || handler.setup(request)) {
        Ok(()) => {
            let handled = attempt(Stage::Handle, || handler.handle(request));
            then(handled, attempt(Stage::Finish, || handler.finish(request)))
        }
        failed => failed,
    };
    let dropped = attempt(Stage::Drop, || {
        drop(handler);
        Ok(())
    });
    then(served, dropped)
}

fn classify<R: Request>(failure: &HandlerFailure, request: &R) -> EndReason {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotFound, TimedOut,
    };
    let Some(error) = failure.error() else {
        return EndReason::Panicked;
    };
    if request.is_cancelled() {
        return EndReason::Cancelled;
    }
    match error.io_kind() {
        // Only if it was this peer: a handler may have other connections, and lose those.
        Some(
            BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | NotFound
            | TimedOut,
        ) if request.is_lost() => EndReason::PeerGone,
        Some(TimedOut) => EndReason::TimedOut,
        _ => EndReason::Failed,
    }
}
