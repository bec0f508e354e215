//! The application's side: a trait with a method for each HTTP method, or one function.

use std::fmt;
use std::sync::Arc;

use ::http::header::ALLOW;
use ::http::{Method, StatusCode};

use super::problem::allow;
use super::{Problem, Request, Response};
use crate::Result;

/// Responds to requests. The factory makes one handler for each connection, which serves its
/// requests one after the other. State that connections share goes into the factory's closure.
///
/// A handler lists its [`methods`](Self::methods) and implements them. The server responds to other
/// methods with 405 and an `Allow` field, or with 501 if HTTP does not define the method. `HEAD`
/// receives the response of `GET` without its body, and `OPTIONS` receives the list of methods.
///
/// If the error of a handler is a [`Problem`], the client receives it as the response. Any other
/// error, and a panic, is reported to `handle_error`. The client then receives a 500, and the
/// connection is closed. If the response had begun already, the connection is reset.
///
/// ```
/// use socketserver::http::{Handler, Http, Method, Request, Response};
/// use socketserver::{Result, ThreadingTcpServer};
/// use std::io::Read;
/// use std::sync::{Arc, Mutex};
///
/// struct Note(Arc<Mutex<String>>);
///
/// impl Handler for Note {
///     fn methods(&self) -> &[Method] {
///         &[Method::GET, Method::PUT]
///     }
///
///     fn get(&mut self, _: &mut Request<'_>) -> Result<Response> {
///         Ok(Response::text(self.0.lock().unwrap().clone()))
///     }
///
///     fn put(&mut self, request: &mut Request<'_>) -> Result<Response> {
///         let mut text = String::new();
///         request.body().read_to_string(&mut text)?;
///         *self.0.lock().unwrap() = text;
///         Ok(Response::text("kept\n"))
///     }
/// }
///
/// let note = Arc::new(Mutex::new(String::new()));
/// let factory = Http::new().handler(move || Note(note.clone()));
/// let server = ThreadingTcpServer::bind("127.0.0.1:0", factory)?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
pub trait Handler: Send + 'static {
    /// Returns the methods that this handler implements.
    fn methods(&self) -> &[Method];

    /// Responds to `GET`, and to `HEAD` by default.
    ///
    /// # Errors
    /// Returns an error as described for the trait. The same applies to the other methods.
    fn get(&mut self, request: &mut Request<'_>) -> Result<Response> {
        missing(request)
    }

    /// Responds to `HEAD`. By default the response is that of `GET` without its body.
    ///
    /// # Errors
    /// Returns an error as described for the trait.
    fn head(&mut self, request: &mut Request<'_>) -> Result<Response> {
        self.get(request)
    }

    /// Responds to `POST`.
    ///
    /// # Errors
    /// Returns an error as described for the trait.
    fn post(&mut self, request: &mut Request<'_>) -> Result<Response> {
        missing(request)
    }

    /// Responds to `PUT`.
    ///
    /// # Errors
    /// Returns an error as described for the trait.
    fn put(&mut self, request: &mut Request<'_>) -> Result<Response> {
        missing(request)
    }

    /// Responds to `PATCH`.
    ///
    /// # Errors
    /// Returns an error as described for the trait.
    fn patch(&mut self, request: &mut Request<'_>) -> Result<Response> {
        missing(request)
    }

    /// Responds to `DELETE`.
    ///
    /// # Errors
    /// Returns an error as described for the trait.
    fn delete(&mut self, request: &mut Request<'_>) -> Result<Response> {
        missing(request)
    }

    /// Responds to `OPTIONS`.
    ///
    /// # Errors
    /// Returns an error as described for the trait.
    fn options(&mut self, request: &mut Request<'_>) -> Result<Response> {
        let _ = request;
        let mut response = Response::new(StatusCode::NO_CONTENT);
        response.headers_mut().insert(ALLOW, allow(self.methods()));
        Ok(response)
    }

    /// Dispatches a request to the method of this trait that matches it. Override it to route
    /// requests yourself or to support other HTTP methods.
    ///
    /// # Errors
    /// Returns an error as described for the trait.
    fn respond(&mut self, request: &mut Request<'_>) -> Result<Response> {
        let method = request.method();
        let methods = self.methods();
        let is_served = methods.contains(method)
            || *method == Method::OPTIONS
            || (*method == Method::HEAD && methods.contains(&Method::GET));
        match *method {
            Method::GET if is_served => self.get(request),
            Method::HEAD if is_served => self.head(request),
            Method::POST if is_served => self.post(request),
            Method::PUT if is_served => self.put(request),
            Method::PATCH if is_served => self.patch(request),
            Method::DELETE if is_served => self.delete(request),
            Method::OPTIONS => self.options(request),
            Method::GET
            | Method::HEAD
            | Method::POST
            | Method::PUT
            | Method::PATCH
            | Method::DELETE
            | Method::CONNECT
            | Method::TRACE => Err(Problem::method_not_allowed(methods).into()),
            _ => missing(request),
        }
    }
}

/// Returns a 501 problem.
fn missing(request: &Request<'_>) -> Result<Response> {
    let why = format!("this server does not implement {}", request.method());
    Err(Problem::new(StatusCode::NOT_IMPLEMENTED, why).into())
}

/// The handler that [`Http::handler_fn`](super::Http::handler_fn) makes. It responds to any method.
pub struct HandlerFn<G>(pub(super) Arc<G>);

impl<G> Handler for HandlerFn<G>
where
    G: Fn(&mut Request<'_>) -> Result<Response> + Send + Sync + 'static,
{
    fn methods(&self) -> &[Method] {
        &[]
    }

    fn respond(&mut self, request: &mut Request<'_>) -> Result<Response> {
        (self.0)(request)
    }
}

impl<G> fmt::Debug for HandlerFn<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HandlerFn").finish_non_exhaustive()
    }
}
