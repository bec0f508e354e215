//! The server: listening sockets, a concurrency model and a factory of handlers, joined by a loop.

mod accept_loop;
mod arrival;
mod back_off;
mod builder;
mod controller;
mod displacement;
mod drain;
mod drops;
mod group;
mod lifecycle;
mod poller;
mod queue;
mod refusal;
mod request;
mod service;
mod session;
mod state;
mod task;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use accept_loop::{ChildSource, Watched};
pub use builder::Builder;
pub(crate) use controller::Record;
pub use controller::{Controller, DrainReport, LiveRequest, RequestId, RequestInfo, RequestState};
pub use displacement::Displacement;
pub use group::{GroupController, ServerGroup};
pub(crate) use poller::watch;
pub use session::Request;
pub use state::ServerState;
pub(crate) use task::{End, wait_to_end};
pub use task::{Pause, Place, Task};

use accept_loop::{Until, Watch, run};
use controller::Shared;
use poller::Poller;
use refusal::Refusals;
use service::{Gate, Progress};

use crate::concurrency::Concurrency;
use crate::transport::{Intake, ToTargets, Transport};
use crate::{Address, BindError, RequestHandler, Result, ServeError};

/// What [`Server::handle_request`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handled {
    /// A request was taken on: served, handed to its thread or process, or refused.
    Request,
    /// None came in time, and the hook `handle_timeout` was called.
    TimedOut,
    /// A stop or a drain was asked for.
    Stopped,
}

type Verify<R> = Box<dyn Fn(&R) -> Result<bool> + Send + Sync>;
type Action = Box<dyn FnMut() -> Result + Send>;

/// What the application adds to a server, besides handlers.
struct Hooks<R> {
    verify_request: Option<Verify<R>>,
    handle_timeout: Option<Action>,
    service_actions: Option<(Duration, Action)>,
}

/// A server for requests of one transport under one concurrency model.
///
/// The names to use are the aliases ([`ThreadingTcpServer`](crate::ThreadingTcpServer) and its
/// kin). The type parameters are the transport, the concurrency model, and the factory: a
/// `Fn() -> H` that makes a new handler for each request.
///
/// Dropping a server closes its listeners, frees the port or the path, and waits for nothing;
/// requests on other threads go on. (A datagram socket stays open until the last datagram that may
/// be replied to is gone.) [`server_close`](Self::server_close) is the graceful way.
pub struct Server<T: Transport, C: Concurrency, F> {
    shared: Arc<Shared>,
    gates: Vec<Gate<T>>,
    concurrency: C,
    factory: Arc<F>,
    intake: Intake,
    hooks: Hooks<T::Request>,
    block_on_close: Option<Duration>,
    watches: Vec<Watch>,
    poller: Option<Poller>,
    progress: Progress<T::Request, F>,
    refusals: Refusals,
}

impl<T: Transport, C: Concurrency> Server<T, C, ()> {
    /// Begins a server with options.
    ///
    /// ```
    /// use socketserver::{Connection, ThreadingTcpServer, Timeouts, handler_fn};
    /// use std::time::Duration;
    ///
    /// let server = ThreadingTcpServer::builder()
    ///     .timeouts(Timeouts::default().request(Some(Duration::from_secs(10))))
    ///     .verify_request(|conn| {
    ///         let peer = conn.peer_addr().as_inet();
    ///         Ok(peer.is_some_and(|peer| peer.ip().is_loopback()))
    ///     })
    ///     .bind("127.0.0.1:0", handler_fn(|_: &mut Connection| Ok(())))?;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[must_use]
    pub fn builder() -> Builder<T, C> {
        Builder::new()
    }
}

impl<T, C, F, H> Server<T, C, F>
where
    T: Transport,
    C: Concurrency,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<T::Request>,
{
    /// Binds and listens, with default options.
    ///
    /// # Errors
    /// See [`BindError`]; nothing stays open after one.
    pub fn bind(address: impl ToTargets<T>, factory: F) -> Result<Self, BindError> {
        Builder::new().bind(address, factory)
    }

    /// Serves until a [stop](Controller::shutdown) or the end of a [drain](Controller::drain) is
    /// reached. After a stop it may be called again.
    ///
    /// Nothing a client or a handler does ends it.
    ///
    /// # Errors
    /// A [`ServeError`], by [`downcast_ref`](crate::Error::downcast_ref), if the server is closed,
    /// cannot fork here, or has lost its listener.
    pub fn serve_forever(&mut self) -> Result {
        self.run(Until::Stopped)?;
        Ok(())
    }

    /// Takes on one request and returns, or calls `handle_timeout` once `timeout` has passed.
    ///
    /// Under a concurrent model the request may still be served when this returns. The hook
    /// `service_actions` is not called. A drain that is asked for meanwhile is seen through, and
    /// may take longer than `timeout`.
    ///
    /// # Errors
    /// As for [`serve_forever`](Self::serve_forever).
    pub fn handle_request(&mut self, timeout: Option<Duration>) -> Result<Handled> {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok(self.run(Until::OneRequest(end))?)
    }

    /// Closes gracefully: serves what waits in the backlog, closes the listeners, and gives live
    /// requests the time set by [`block_on_close`](Builder::block_on_close) to end, as a
    /// [drain](Controller::drain) does.
    ///
    /// # Errors
    /// As for [`serve_forever`](Self::serve_forever). The listeners are closed even so.
    pub fn server_close(mut self) -> Result<DrainReport> {
        let controller = self.controller();
        let Some(timeout) = self.block_on_close else {
            return Ok(DrainReport::default());
        };
        if controller.drain_report().is_none() {
            controller.drain(timeout);
            self.run(Until::Stopped)?;
        }
        Ok(controller.drain_report().unwrap_or_default())
    }

    fn run(&mut self, until: Until) -> Result<Handled, ServeError> {
        let mut watches = std::mem::take(&mut self.watches);
        let mut poller = self.poller.take();
        if !self.shared.lifecycle.is_owner() {
            // It was made before a fork, and the other process has it as well.
            poller = None;
        }
        let result = run(&mut poller, &mut [self], 0, &mut watches, until);
        self.poller = poller;
        self.watches = watches;
        result
    }
}

impl<T: Transport, C: Concurrency, F> Server<T, C, F> {
    /// The handle that stops this server from elsewhere.
    #[must_use]
    pub fn controller(&self) -> Controller {
        Controller(self.shared.clone())
    }

    /// The address it is bound to, with the real port; the first one, if there are several.
    ///
    /// # Panics
    /// After a drain, as there is none any more.
    #[must_use]
    pub fn local_addr(&self) -> &Address {
        &self
            .gates
            .first()
            .expect("a drained server has no address")
            .address
    }

    /// All addresses it is bound to; none after a drain.
    pub fn local_addrs(&self) -> impl Iterator<Item = &Address> {
        self.gates.iter().map(|gate| &*gate.address)
    }

    /// Has the serving thread call `call` whenever `fd` is readable; `call` reads it.
    ///
    /// This is how signals reach a forking server, which can have no thread for them. A `call`
    /// that returns [`Watched::Done`], or fails, is not called again.
    pub fn watch<W: Into<Watched>>(
        &mut self,
        fd: impl Into<OwnedFd>,
        call: impl FnMut() -> Result<W> + Send + 'static,
    ) {
        self.watches.push(Watch::new(fd.into(), call));
    }
}

/// The (first) listening socket, for options that the builder does not have.
///
/// # Panics
/// After a drain, as there is none any more.
impl<T: Transport, C: Concurrency, F> AsFd for Server<T, C, F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.gates
            .first()
            .expect("a drained server has no socket")
            .listener
            .as_fd()
    }
}

impl<T: Transport, C: Concurrency, F> Drop for Server<T, C, F> {
    fn drop(&mut self) {
        if self.shared.lifecycle.is_owner() {
            self.shared.lifecycle.leave(true);
            self.shared.tell_state();
        }
    }
}

impl<T: Transport, C: Concurrency, F> fmt::Debug for Server<T, C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.local_addrs().map(ToString::to_string).collect();
        f.debug_struct("Server")
            .field("transport", &T::NAME)
            .field("concurrency", &C::NAME)
            .field("addresses", &addresses)
            .finish_non_exhaustive()
    }
}
