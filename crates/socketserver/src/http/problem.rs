//! The error response to a request.

use std::borrow::Cow;
use std::io;

use ::http::header::ALLOW;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

/// An error response: the status, and a sentence for the reader.
///
/// The library returns a problem for a request that it rejects. A handler may return a problem as
/// its error. The client then receives it as the response, and no handler error is reported.
///
/// ```
/// use socketserver::http::{Problem, Request, Response, StatusCode};
/// use socketserver::Result;
///
/// fn respond(request: &mut Request<'_>) -> Result<Response> {
///     let id: u32 = request.path().trim_start_matches('/').parse().map_err(|_| {
///         Problem::new(StatusCode::NOT_FOUND, "notes have numbers: /1, /2, ...")
///     })?;
///     Ok(Response::text(format!("note {id}\n")))
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub struct Problem {
    status: StatusCode,
    message: Cow<'static, str>,
    headers: Option<Box<HeaderMap>>,
}

impl Problem {
    /// Returns a problem with this status.
    #[must_use]
    pub fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            message: message.into(),
            headers: None,
        }
    }

    /// Returns a 405 problem with the supported methods. `HEAD` is added if `GET` is supported.
    #[must_use]
    pub fn method_not_allowed(allowed: &[Method]) -> Self {
        let message = "this resource does not have that method";
        let problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, message);
        problem.header(ALLOW, allow(allowed))
    }

    /// Sets a field of the response, such as `Retry-After` or `WWW-Authenticate`.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.get_or_insert_default().insert(name, value);
        self
    }

    /// Returns the status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the text for the client.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn headers(&self) -> Option<&HeaderMap> {
        self.headers.as_deref()
    }

    /// Returns the problem inside an error of a reader, if there is one.
    ///
    /// ```
    /// use socketserver::http::{HttpLimits, Problem, RequestHead, StatusCode};
    ///
    /// let error = RequestHead::read(&mut &b"GET / HTTP/3.0\r\n\r\n"[..], &HttpLimits::default()).unwrap_err();
    /// let status = Problem::of(&error).unwrap().status();
    /// assert_eq!(status, StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    /// ```
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// 400.
pub(super) const fn bad(message: &'static str) -> Problem {
    problem(StatusCode::BAD_REQUEST, message)
}

pub(super) const fn problem(status: StatusCode, message: &'static str) -> Problem {
    Problem {
        status,
        message: Cow::Borrowed(message),
        headers: None,
    }
}

/// The value of `Allow`.
pub(super) fn allow(methods: &[Method]) -> HeaderValue {
    let mut names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    if methods.contains(&Method::GET) && !methods.contains(&Method::HEAD) {
        names.push("HEAD");
    }
    if !methods.contains(&Method::OPTIONS) {
        names.push("OPTIONS");
    }
    // Methods are tokens, and so is their list with its commas.
    HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static("GET"))
}

/// Converts the problem into an error of a reader.
impl From<Problem> for io::Error {
    fn from(problem: Problem) -> Self {
        let kind = match problem.status {
            StatusCode::REQUEST_TIMEOUT => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, problem)
    }
}
