//! What an application writes: a handler, and the factory that makes one for each request.

use std::fmt;
use std::sync::Arc;

use crate::Result;

/// Serves one request: a [`Connection`](crate::Connection) or a [`Datagram`](crate::Datagram).
///
/// A new value is made for each request by the factory given to the server, and dropped when the
/// request has ended; it is never shared. State that requests share is put into the factory's
/// closure.
///
/// The order is `setup`, `handle`, `finish`. When `setup` fails, the other two are left out; when
/// `handle` fails or panics, `finish` runs all the same. The first failure goes to the server's
/// `handle_error` hook; it never ends the server.
///
/// A handler that has asked to [keep the connection alive](crate::Connection::suspend_until_readable) is called
/// again, by `handle` only, when the peer sends more; perhaps on another thread, which is why a
/// handler is `Send`.
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
    /// Before `handle`: greet, set options, allocate.
    ///
    /// # Errors
    /// An error ends the request without `handle` and `finish`.
    fn setup(&mut self, request: &mut R) -> Result<()> {
        let _ = request;
        Ok(())
    }

    /// The service itself. Returning ends the request, unless the connection is to be kept alive.
    ///
    /// # Errors
    /// An error is handed to `handle_error` after `finish` has run.
    fn handle(&mut self, request: &mut R) -> Result<()>;

    /// After `handle`, however it ended: release what `setup` took.
    ///
    /// # Errors
    /// An error is handed to `handle_error`, unless `handle` failed before.
    fn finish(&mut self, request: &mut R) -> Result<()> {
        let _ = request;
        Ok(())
    }
}

/// Makes the factory of a handler that is only a function.
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

/// The handler that [`handler_fn`] makes.
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
