//! The interface that an application implements: a handler, and the factory that creates one for
//! each request.

use std::fmt;
use std::sync::Arc;

use crate::Result;

/// Serves one request: a [`Connection`](crate::Connection) or a [`Datagram`](crate::Datagram).
///
/// The server calls the factory for each request and drops the handler when the request ends. A
/// handler is never shared between requests. Put state that requests share into the factory's
/// closure.
///
/// The server calls `setup`, `handle` and `finish` in this order. If `setup` fails, `handle` and
/// `finish` are not called. If `handle` fails or panics, `finish` is called nevertheless. The first
/// error goes to the server's `handle_error` hook. An error never ends the server.
///
/// A handler can [suspend its connection](crate::Connection::suspend_until_readable). The server
/// then calls `handle` again, without `setup` and `finish`, when the peer sends more. This call can
/// run on another thread, so a handler must be `Send`.
///
/// ```
/// use socketserver::{Connection, RequestHandler, Result};
/// use std::io::{BufRead, Write};
/// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
///
/// struct Counter(Arc<AtomicU64>);
///
/// impl RequestHandler<Connection> for Counter {
///     fn handle(&mut self, conn: &mut Connection) -> Result<()> {
///         let mut line = String::new();
///         while conn.read_line(&mut line)? > 0 {
///             writeln!(conn, "{}", self.0.fetch_add(1, Ordering::Relaxed))?;
///             line.clear();
///         }
///         Ok(())
///     }
/// }
///
/// let total = Arc::new(AtomicU64::new(0));
/// let factory = move || Counter(total.clone());
/// let server = socketserver::ThreadingTcpServer::bind("127.0.0.1:0", factory)?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
pub trait RequestHandler<R>: Send + 'static {
    /// Prepares the request before `handle`: sends a greeting, sets options, allocates.
    ///
    /// # Errors
    /// Returning an error ends the request without calls of `handle` and `finish`.
    fn setup(&mut self, request: &mut R) -> Result<()> {
        let _ = request;
        Ok(())
    }

    /// Serves the request. The request ends when this method returns, unless the handler has
    /// suspended the connection.
    ///
    /// # Errors
    /// A returned error is passed to `handle_error` after `finish` has run.
    fn handle(&mut self, request: &mut R) -> Result<()>;

    /// Releases the resources of `setup`. The server calls this method after `handle`, even if
    /// `handle` failed or panicked.
    ///
    /// # Errors
    /// A returned error is passed to `handle_error`, unless `handle` has failed before.
    fn finish(&mut self, request: &mut R) -> Result<()> {
        let _ = request;
        Ok(())
    }
}

/// Returns a factory of handlers that consist of one function.
///
/// ```
/// use socketserver::{Datagram, ThreadingUdpServer, handler_fn};
///
/// let server = ThreadingUdpServer::bind("127.0.0.1:0", handler_fn(|packet: &mut Datagram| {
///     Ok(packet.reply(&packet.bytes().to_ascii_uppercase())?)
/// }))?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
pub fn handler_fn<R, G>(handle: G) -> impl Fn() -> HandlerFn<G> + Clone + Send + Sync + 'static
where
    G: Fn(&mut R) -> Result<()> + Send + Sync + 'static,
{
    let handle = Arc::new(handle);
    move || HandlerFn(handle.clone())
}

/// A handler that consists of one function; created by [`handler_fn`].
pub struct HandlerFn<G>(Arc<G>);

impl<R, G> RequestHandler<R> for HandlerFn<G>
where
    G: Fn(&mut R) -> Result<()> + Send + Sync + 'static,
{
    fn handle(&mut self, request: &mut R) -> Result<()> {
        (self.0)(request)
    }
}

impl<G> fmt::Debug for HandlerFn<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HandlerFn").finish_non_exhaustive()
    }
}
