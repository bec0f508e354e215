//! The server: listening sockets, a concurrency model and a handler factory, joined by an accept
//! loop.

mod accept;
mod accept_loop;
mod backoff;
mod builder;
mod close;
mod displacement;
mod drain;
mod drop_report;
mod group;
mod handle;
mod lifecycle;
mod pending;
mod poller;
mod queue;
mod rejection;
mod session;
mod state;
mod task;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use accept_loop::{ChildWatcher, Watched};
pub use builder::Builder;
pub use displacement::Displacement;
pub use group::{GroupHandle, ServerGroup};
pub(crate) use handle::RequestGuard;
pub use handle::{ActiveRequest, DrainReport, RequestId, RequestInfo, RequestState, ServerHandle};
pub(crate) use poller::watch;
pub use session::Request;
pub use state::ServerState;
pub use task::{ChildSlot, Suspended, Task};
pub(crate) use task::{Outcome, wait_to_end};

use accept::{ListenerSlot, LoopState};
use accept_loop::{RunUntil, Watch, run};
use handle::Shared;
use pending::MakeSession;
use poller::Poller;
use rejection::Rejector;

use crate::concurrency::Concurrency;
use crate::transport::{AcceptContext, ToBindAddrs, Transport};
use crate::{Address, BindError, RequestHandler, Result, ServeError};

/// The result of [`Server::handle_request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestOutcome {
    /// A request was accepted. It was served, handed to its thread or process, or rejected.
    Request,
    /// No request arrived within the timeout, and the hook `handle_timeout` was called.
    TimedOut,
    /// A stop or a drain was requested.
    Stopped,
}

type Verify<R> = Box<dyn Fn(&R) -> Result<bool> + Send + Sync>;
type Action = Box<dyn FnMut() -> Result<()> + Send>;

/// The callbacks that the application adds to a server, besides handlers.
struct Hooks<R> {
    verify_request: Option<Verify<R>>,
    handle_timeout: Option<Action>,
    service_actions: Option<(Duration, Action)>,
}

/// A server for requests of one transport under one concurrency model.
///
/// Use it by its aliases, such as [`ThreadingTcpServer`](crate::ThreadingTcpServer). The type
/// parameters are the transport and the concurrency model. The factory, a `Fn() -> H` that makes a
/// new handler for each request, is not part of the type. A server can therefore be a field, an
/// element of a `Vec`, or a return type.
///
/// Dropping a server closes its listeners and frees the port or the path. The drop does not wait:
/// requests on other threads continue. A datagram socket stays open until the last datagram that
/// may be replied to is dropped. [`server_close`](Self::server_close) closes the server gracefully.
pub struct Server<T: Transport, C: Concurrency> {
    shared: Arc<Shared>,
    listeners: Vec<ListenerSlot<T>>,
    concurrency: C,
    factory: Arc<dyn MakeSession<T::Request>>,
    accept_context: AcceptContext,
    hooks: Hooks<T::Request>,
    block_on_close: Option<Duration>,
    watches: Vec<Watch>,
    poller: Option<Poller>,
    progress: LoopState<T::Request>,
    rejections: Rejector,
}

impl<T: Transport, C: Concurrency> Server<T, C> {
    /// Returns a builder for a server with options.
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
    /// # Ok::<(), socketserver::BoxError>(())
    /// ```
    #[must_use]
    pub fn builder() -> Builder<T, C> {
        Builder::new()
    }
}

impl<T: Transport, C: Concurrency> Server<T, C> {
    /// Binds and listens, with default options.
    ///
    /// # Errors
    /// Returns a [`BindError`] if the address is invalid or cannot be bound. No socket stays open
    /// then.
    pub fn bind<F, H>(address: impl ToBindAddrs<T>, factory: F) -> Result<Self, BindError>
    where
        F: Fn() -> H + Send + Sync + 'static,
        H: RequestHandler<T::Request>,
    {
        Builder::new().bind(address, factory)
    }

    /// Serves until a [stop](ServerHandle::shutdown) is requested or a [drain](ServerHandle::drain)
    /// has ended. After a stop this method may be called again.
    ///
    /// No client and no handler can end this call.
    ///
    /// # Errors
    /// Returns a [`ServeError`] if the server is closed, cannot fork here, or has lost its
    /// listener.
    pub fn serve_forever(&mut self) -> Result<(), ServeError> {
        self.run(RunUntil::Stopped)?;
        Ok(())
    }

    /// Accepts one request and returns, or calls `handle_timeout` once `timeout` has passed.
    ///
    /// Under a concurrent model the request may still be served when this method returns. The hook
    /// `service_actions` is not called. If a drain is requested during the call, the method
    /// completes the drain, which may take longer than `timeout`.
    ///
    /// # Errors
    /// Returns the errors of [`serve_forever`](Self::serve_forever).
    pub fn handle_request(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<RequestOutcome, ServeError> {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.run(RunUntil::OneRequest(end))
    }

    /// Closes the server gracefully, as a [drain](ServerHandle::drain) does. Serves the connections
    /// in the backlog, closes the listeners, and lets active requests end within the time set by
    /// [`block_on_close`](Builder::block_on_close).
    ///
    /// # Errors
    /// Returns the errors of [`serve_forever`](Self::serve_forever). The listeners are closed in
    /// that case, too.
    pub fn server_close(mut self) -> Result<DrainReport, ServeError> {
        let handle = self.handle();
        let Some(timeout) = self.block_on_close else {
            return Ok(DrainReport::default());
        };
        if handle.drain_report().is_none() {
            handle.drain(timeout);
            self.run(RunUntil::Stopped)?;
        }
        Ok(handle.drain_report().unwrap_or_default())
    }

    fn run(&mut self, until: RunUntil) -> Result<RequestOutcome, ServeError> {
        let mut watches = std::mem::take(&mut self.watches);
        let mut poller = self.poller.take();
        if !self.shared.lifecycle.is_owner() {
            // The poller was made before a fork, so the other process uses it as well.
            poller = None;
        }
        let result = run(&mut poller, &mut [self], 0, &mut watches, until);
        self.poller = poller;
        self.watches = watches;
        result
    }
}

impl<T: Transport, C: Concurrency> Server<T, C> {
    /// Returns a handle that stops and inspects this server from other threads.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        ServerHandle(self.shared.clone())
    }

    /// Returns the address that the server is bound to, with the actual port. If the server has
    /// several addresses, this is the first.
    ///
    /// # Panics
    /// Panics after a drain, because the server has no address then.
    #[must_use]
    pub fn local_addr(&self) -> &Address {
        &self
            .listeners
            .first()
            .expect("a drained server has no address")
            .address
    }

    /// Returns all addresses that the server is bound to, or none after a drain.
    pub fn local_addrs(&self) -> impl Iterator<Item = &Address> {
        self.listeners.iter().map(|listener| &*listener.address)
    }

    /// Calls `call` on the serving thread whenever `fd` is readable; `call` reads it.
    ///
    /// A forking server receives its signals this way, because it cannot have a thread for them. If
    /// `call` returns [`Watched::Done`] or fails, the server does not call it again.
    pub fn watch<W: Into<Watched>>(
        &mut self,
        fd: impl Into<OwnedFd>,
        call: impl FnMut() -> Result<W> + Send + 'static,
    ) {
        self.watches.push(Watch::new(fd.into(), call));
    }
}

/// Returns the first listening socket, for options that the builder does not have.
///
/// # Panics
/// Panics after a drain, because the server has no socket then.
impl<T: Transport, C: Concurrency> AsFd for Server<T, C> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listeners
            .first()
            .expect("a drained server has no socket")
            .listener
            .as_fd()
    }
}

impl<T: Transport, C: Concurrency> Drop for Server<T, C> {
    fn drop(&mut self) {
        if self.shared.lifecycle.is_owner() {
            self.shared.lifecycle.leave(true);
            self.shared.report_state();
        }
    }
}

impl<T: Transport, C: Concurrency> fmt::Debug for Server<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.local_addrs().map(ToString::to_string).collect();
        f.debug_struct("Server")
            .field("transport", &T::NAME)
            .field("concurrency", &C::NAME)
            .field("addresses", &addresses)
            .finish_non_exhaustive()
    }
}
