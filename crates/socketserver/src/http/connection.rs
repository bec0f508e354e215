//! The HTTP server side of a connection: reads requests and calls the handler.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{HeaderValue, Method, StatusCode};

use super::handler::HandlerFn;
use super::head::{HeadReader, Took};
use super::problem::problem;
use super::request_body::RequestBody;
use super::response_writer::{Progress, ResponseContext, send};
use super::{Handler, HttpLimits, Problem, Request, RequestHead, Response};
use crate::timeouts::{earliest, timed_out};
use crate::user_code::{HandlerErrorKind, call_user_code, catch_panic, resume};
use crate::{Address, Connection, EndReason, RequestHandler, RequestId, Result};

type ErrorPage = dyn Fn(&Problem) -> Response + Send + Sync;
type OnResponse = dyn Fn(&RequestLog<'_>) + Send + Sync;

/// HTTP/1.1 on connections: turns a factory of [`Handler`]s into a factory for a server.
///
/// ```
/// use socketserver::http::{Http, Request, Response};
/// use socketserver::ThreadingTcpServer;
///
/// let hello = Http::new().handler_fn(|request: &mut Request<'_>| {
///     Ok(Response::text(format!("you have asked for {}\n", request.path())))
/// });
/// let server = ThreadingTcpServer::bind("127.0.0.1:0", hello)?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
#[derive(Clone)]
pub struct Http {
    limits: HttpLimits,
    keep_alive: bool,
    server: Option<HeaderValue>,
    error_page: Option<Arc<ErrorPage>>,
    on_response: Option<Arc<OnResponse>>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            limits: HttpLimits::default(),
            keep_alive: true,
            server: None,
            error_page: None,
            on_response: None,
        }
    }
}

impl Http {
    /// Returns the default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the limits on requests.
    #[must_use]
    pub fn limits(mut self, limits: HttpLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets whether a connection is kept for further requests. Defaults to true. A sequential
    /// server serves no other client while a connection is kept, so turn this off there.
    #[must_use]
    pub fn keep_alive(mut self, keep: bool) -> Self {
        self.keep_alive = keep;
        self
    }

    /// Sets the `Server` field of responses. Defaults to no such field.
    #[must_use]
    pub fn server_name(mut self, name: HeaderValue) -> Self {
        self.server = Some(name);
        self
    }

    /// Sets a function that makes the response to a rejected request. By default the response is a
    /// line of text. The status is set afterwards. The function must not fail.
    #[must_use]
    pub fn error_page(
        mut self,
        page: impl Fn(&Problem) -> Response + Send + Sync + 'static,
    ) -> Self {
        self.error_page = Some(Arc::new(page));
        self
    }

    /// Sets an observer of each request and its response, such as an access log. The observer is
    /// called after the response has been sent, on the worker that served the request.
    #[must_use]
    pub fn on_response(mut self, call: impl Fn(&RequestLog<'_>) + Send + Sync + 'static) -> Self {
        self.on_response = Some(Arc::new(call));
        self
    }

    /// Returns a factory for a server, from one that makes a [`Handler`] for each connection.
    pub fn handler<F, H>(
        self,
        factory: F,
    ) -> impl Fn() -> HttpHandler<H> + Clone + Send + Sync + 'static
    where
        F: Fn() -> H + Clone + Send + Sync + 'static,
        H: Handler,
    {
        let http = Arc::new(self);
        move || HttpHandler {
            handler: factory(),
            http: http.clone(),
            has_waited: false,
            begun: None,
            upgraded: None,
        }
    }

    /// Returns a factory for a server, from a function that responds to requests.
    pub fn handler_fn<G>(
        self,
        respond: G,
    ) -> impl Fn() -> HttpHandler<HandlerFn<G>> + Clone + Send + Sync + 'static
    where
        G: Fn(&mut Request<'_>) -> Result<Response> + Send + Sync + 'static,
    {
        let respond = Arc::new(respond);
        self.handler(move || HandlerFn(respond.clone()))
    }

    fn page(&self, problem: &Problem) -> Response {
        let page = self.error_page.as_ref();
        let page = page.and_then(|page| catch_panic(|| page(problem)).ok());
        let mut page = page.unwrap_or_else(|| problem.into());
        page.status = problem.status();
        page.headers
            .extend(problem.headers().cloned().unwrap_or_default());
        page
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("limits", &self.limits)
            .field("keep_alive", &self.keep_alive)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// A request and the result of serving it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestLog<'a> {
    /// The number of the connection.
    pub id: RequestId,
    /// The client.
    pub peer: &'a Address,
    /// The request; `None` if it is malformed.
    pub request: Option<&'a RequestHead>,
    /// The status of the response.
    pub status: StatusCode,
    /// The number of bytes of the response body that were sent.
    pub sent: u64,
    /// True if the client has received the whole response, as far as the server knows.
    pub is_complete: bool,
    /// The time from the end of the head to the end of the response.
    pub elapsed: Duration,
}

/// Serves the requests of one connection; made by [`Http::handler`].
///
/// Each call of [`handle`](RequestHandler::handle) serves one request. The connection is
/// [suspended](Connection::suspend_until_readable) before the first request, between requests, and
/// while a head arrives. A connection that waits for its client holds neither a pool thread nor a
/// stack. During a drain, responses announce that they are the last.
pub struct HttpHandler<H> {
    handler: H,
    http: Arc<Http>,
    /// The handler has been called before.
    has_waited: bool,
    /// A part of a head has arrived.
    begun: Option<Box<Begun>>,
    /// The handler of the connection after an upgrade.
    upgraded: Option<Box<dyn RequestHandler<Connection>>>,
}

impl<H: Handler> RequestHandler<Connection> for HttpHandler<H> {
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        if let Some(upgraded) = &mut self.upgraded {
            return upgraded.handle(conn);
        }
        conn.set_disposable(true);
        if !std::mem::replace(&mut self.has_waited, true) && is_silent(conn) {
            // Browsers connect before they have a request to send. Until then the connection holds
            // no worker, and a drain does not wait for it.
            conn.suspend_until_readable();
            return Ok(());
        }
        let Some(head) = self.read_or_end(conn)? else {
            return Ok(());
        };
        match self.serve(conn, &head)? {
            Next::End => {}
            Next::Request => conn.suspend_until_readable(),
            Next::Upgrade(mut upgraded) => {
                conn.set_disposable(false);
                // If `setup` fails, the handler is dropped here, without a `finish`.
                upgraded.setup(conn)?;
                return self.upgraded.insert(upgraded).handle(conn);
            }
        }
        Ok(())
    }

    fn finish(&mut self, conn: &mut Connection) -> Result<()> {
        match &mut self.upgraded {
            Some(upgraded) => upgraded.finish(conn),
            None => Ok(()),
        }
    }
}

/// A head whose rest has not arrived. The connection holds no worker until then.
struct Begun {
    reader: HeadReader,
    since: Instant,
    parked: Instant,
}

/// The next state of a connection after a response.
enum Next {
    End,
    Request,
    Upgrade(Box<dyn RequestHandler<Connection>>),
}

impl Next {
    fn request(may_follow: bool) -> Self {
        if may_follow { Self::Request } else { Self::End }
    }
}

impl<H: Handler> HttpHandler<H> {
    /// Reads a head. During a drain this includes a head that arrived while the end of input was
    /// read, because the server has caused that end, and the client may not know of it yet.
    fn read_or_end(&mut self, conn: &mut Connection) -> Result<Option<RequestHead>> {
        let head = self.read(conn)?;
        // No request follows a rejected request or a partial head.
        let is_end = head.is_none() && conn.has_ended() && conn.verdict().is_none();
        let is_late = is_end && conn.server().is_draining() && conn.socket().has_input();
        match is_late {
            true => self.read(conn),
            false => Ok(head),
        }
    }

    /// Reads a head. Returns `None` if there is none, if it was rejected, or if it is incomplete.
    /// In the last case the connection is suspended until the rest arrives.
    fn read(&mut self, conn: &mut Connection) -> Result<Option<RequestHead>> {
        let limits = &self.http.limits;
        let deadline = conn.deadline();
        let until = |since: Instant| {
            let end = limits
                .header_read_timeout
                .and_then(|time| since.checked_add(time));
            earliest(deadline, end)
        };
        let is_late = conn.take_timer_wakeup() && !conn.has_something();
        let (mut reader, mut since) = match self.begun.take() {
            Some(begun) => {
                conn.end_rest();
                conn.has_waited(begun.parked.elapsed());
                conn.set_deadline(until(begun.since));
                (begun.reader, Some(begun.since))
            }
            None => (HeadReader::default(), None),
        };
        let read = if is_late {
            Err(timed_out())
        } else {
            reader.read(conn, limits, |conn| {
                conn.begin_message();
                if since.is_none() {
                    let now = Instant::now();
                    conn.set_deadline(until(now));
                    since = Some(now);
                }
                conn.has_something()
            })
        };
        if let (Ok(Took::Part), Some(since)) = (&read, since) {
            let parked = conn.rest_within_message();
            conn.set_deadline(deadline);
            self.begun = Some(Box::new(Begun {
                reader,
                since,
                parked,
            }));
            return Ok(None);
        }
        conn.end_message();
        conn.set_deadline(deadline);
        let error = match read {
            Ok(Took::Head(head)) => return Ok(Some(head)),
            Ok(Took::End | Took::Part) => return Ok(None),
            Err(error) => error,
        };
        if let Some(problem) = Problem::of(&error) {
            conn.ends_as(EndReason::ProtocolError);
            self.refuse(conn, None, problem);
            return Ok(None);
        }
        if since.is_some() && error.kind() == io::ErrorKind::TimedOut {
            let too_slow = problem(
                StatusCode::REQUEST_TIMEOUT,
                "the request takes too long to arrive",
            );
            self.refuse(conn, None, &too_slow);
        }
        Err(error.into())
    }

    /// Serves one request, and returns the next state of the connection.
    fn serve(&mut self, conn: &mut Connection, head: &RequestHead) -> Result<Next> {
        let began = Instant::now();
        let http = self.http.clone();
        let expects_continue = match head.expects_continue() {
            Ok(expects) => expects,
            Err(problem) => {
                self.refuse(conn, Some(head), &problem);
                return Ok(Next::End);
            }
        };
        let mut incoming = RequestBody::new(head.framing(), expects_continue, &http.limits);
        let answered = catch_panic(|| {
            self.handler
                .respond(&mut Request::new(head, &mut incoming, conn))
        });
        conn.end_message();
        let (response, failure) = match answered {
            Ok(Ok(response)) if is_tunnel(head, &response) => (http.page(&NO_TUNNEL), None),
            Ok(Ok(response)) => (response, None),
            Ok(Err(error)) => match incoming.failure().or(error.downcast_ref()) {
                Some(problem) => (http.page(problem), None),
                // The client has disconnected, so no response is sent.
                None if is_gone(conn) => return Err(error),
                None => (
                    http.page(&FAILED).close(),
                    Some(HandlerErrorKind::Error(error)),
                ),
            },
            Err(panic) => (http.page(&FAILED).close(), Some(panic)),
        };
        if let Some(problem) = incoming.failure() {
            conn.ends_as(match problem.status() {
                StatusCode::REQUEST_TIMEOUT => EndReason::TimedOut,
                _ => EndReason::ProtocolError,
            });
        }
        let (mut response, failure) = match response.not_final() {
            Some(error) => (http.page(&FAILED).close(), failure.or(Some(error))),
            None => (response, failure),
        };
        let mut upgrade = response.upgrade.take();
        if let Some(Err(problem)) = upgrade.as_ref().map(|up| up.check(head, &incoming)) {
            (response, upgrade) = (http.page(&problem), None);
        }
        let stays = http.keep_alive
            && head.wants_to_stay()
            // Bytes that the client has sent ahead are meant for the tunnel, and not for this
            // server.
            && *head.method() != Method::CONNECT
            && !response.closes
            && incoming.failure().is_none()
            // The client may send the body now or not, so the next bytes are ambiguous.
            && !incoming.expects_continue()
            && incoming.length().is_none_or(|left| left <= http.limits.max_discard)
            && !conn.server().is_lame()
            && !conn.server().is_draining();
        let sent = self.answer(
            conn,
            Some(head),
            response,
            stays || upgrade.is_some(),
            began,
        );
        // The first error is reported.
        match (failure, sent) {
            (Some(cause), _) | (None, Err(cause)) => resume(cause),
            (None, Ok(true)) if !incoming.is_done() => {
                conn.begin_message();
                let is_done = incoming.discard(conn, http.limits.max_discard);
                conn.end_message();
                Ok(Next::request(is_done?))
            }
            (None, Ok(stays)) => Ok(match upgrade {
                Some(upgrade) => Next::Upgrade(upgrade.handler),
                None => Next::request(stays),
            }),
        }
    }

    /// Responds to a rejected request. The connection is closed afterwards.
    fn refuse(&self, conn: &mut Connection, head: Option<&RequestHead>, problem: &Problem) {
        let page = self.http.page(problem);
        // An error is ignored, because the connection is closed in any case.
        let _ = self.answer(conn, head, page, false, Instant::now());
    }

    /// Sends a response, and returns true if the connection can serve another request.
    fn answer(
        &self,
        conn: &mut Connection,
        head: Option<&RequestHead>,
        response: Response,
        stays: bool,
        began: Instant,
    ) -> Result<bool, HandlerErrorKind> {
        let mut to = ResponseContext::new(head, stays, self.http.server.as_ref());
        let is_unframed = to.ends_with_connection(&response);
        to.stays &= !is_unframed;
        let mut status = response.status;
        let mut progress = Progress::default();
        let sent = call_user_code(|| send(conn, &to, response, &mut progress));
        if sent.is_err() && !is_gone(conn) {
            if !progress.has_begun {
                status = FAILED.status();
                to.stays = false;
                let page = self.http.page(&FAILED);
                let _ = catch_panic(|| send(conn, &to, page, &mut progress));
            } else if is_unframed {
                // The client would take a normal close for the end of the response.
                conn.socket().reset();
            }
        }
        if let Some(call) = &self.http.on_response {
            let exchange = RequestLog {
                id: conn.id(),
                peer: conn.peer_addr(),
                request: head,
                status,
                sent: progress.body,
                is_complete: sent.is_ok(),
                elapsed: began.elapsed(),
            };
            if let Err(cause) = catch_panic(|| call(&exchange)) {
                tracing::error!(cause = format_args!("{cause:#}"), "on_response has failed");
            }
        }
        sent.map(|()| to.stays)
    }
}

const FAILED: Problem = problem(
    StatusCode::INTERNAL_SERVER_ERROR,
    "the server has failed to answer; its log says why",
);

const NO_TUNNEL: Problem = problem(
    StatusCode::NOT_IMPLEMENTED,
    "this server opens no tunnels to others",
);

/// Returns true if a success response would turn the connection into a tunnel (RFC 9110, 9.3.6). A
/// handler that responds to any method does not intend that.
fn is_tunnel(head: &RequestHead, response: &Response) -> bool {
    *head.method() == Method::CONNECT && response.status_code().is_success()
}

/// Returns true if the connection should be suspended until the client sends its first byte. During
/// a drain the handler reads instead, because a suspended connection is closed at once.
fn is_silent(conn: &mut Connection) -> bool {
    !conn.server().is_draining() && !conn.has_buffered() && !conn.socket().has_input()
}

fn is_gone(conn: &Connection) -> bool {
    conn.socket().is_disconnected() || conn.socket().is_cancelled()
}

impl<H> fmt::Debug for HttpHandler<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpHandler")
            .field("http", &self.http)
            .finish_non_exhaustive()
    }
}
