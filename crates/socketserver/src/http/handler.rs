//! What an application writes: a method for each method of HTTP that it has, or one function.

use std::fmt;
use std::sync::Arc;

use ::http::header::ALLOW;
use ::http::{Method, StatusCode};

use super::problem::allow;
use super::{Problem, Request, Response};
use crate::Result;

/// Answers requests. A value is made for each connection, and sees its requests one after the other;
/// what connections share goes into the factory's closure.
///
/// A handler says which [`methods`](Self::methods) it has, and implements those. Others are answered
/// with 405 and an `Allow`, or with 501 if HTTP does not know them. `HEAD` is answered as `GET` is,
/// without the body; `OPTIONS` with the list.
///
/// An error that is a [`Problem`] is the answer. Any other one, and a panic, is told to
/// `handle_error`, and the client gets 500 and the end of the connection; if the answer had begun
/// already, the connection is cut.
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
    /// The methods that it implements.
    fn methods(&self) -> &[Method];

    /// `GET`, and `HEAD`.
    ///
    /// # Errors
    /// See the trait; the same holds for the others.
    fn get(&mut self, request: &mut Request<'_>) -> Result<Response> {
        missing(request)
    }

    /// `HEAD`, if it is not to be answered as `GET` is.
    ///
    /// # Errors
    /// See the trait.
    fn head(&mut self, request: &mut Request<'_>) -> Result<Response> {
        self.get(request)
    }

    /// `POST`.
    ///
    /// # Errors
    /// See the trait.
    fn post(&mut self, request: &mut Request<'_>) -> Result<Response> {
        missing(request)
    }

    /// `PUT`.
    ///
    /// # Errors
    /// See the trait.
    fn put(&mut self, request: &mut Request<'_>) -> Result<Response> {
        missing(request)
    }

    /// `PATCH`.
    ///
    /// # Errors
    /// See the trait.
    fn patch(&mut self, request: &mut Request<'_>) -> Result<Response> {
        missing(request)
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// See the trait.
    fn delete(&mut self, request: &mut Request<'_>) -> Result<Response> {
        missing(request)
    }

    /// `OPTIONS`.
    ///
    /// # Errors
    /// See the trait.
    fn options(&mut self, request: &mut Request<'_>) -> Result<Response> {
        let _ = request;
        let mut response = Response::new(StatusCode::NO_CONTENT);
        response.headers_mut().insert(ALLOW, allow(self.methods()));
        Ok(response)
    }

    /// Any request: calls one of the others. To be implemented by who has methods of his own, or does
    /// not care about them.
    ///
    /// # Errors
    /// See the trait.
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

/// 501.
fn missing(request: &Request<'_>) -> Result<Response> {
    let why = format!("this server does not implement {}", request.method());
    Err(Problem::new(StatusCode::NOT_IMPLEMENTED, why).into())
}

/// The handler that [`Http::handler_fn`](super::Http::handler_fn) makes: it answers any method.
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
