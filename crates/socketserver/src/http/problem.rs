//! Why a request gets an error for an answer.

use std::borrow::Cow;
use std::io;

use ::http::StatusCode;

/// A request that is answered with an error: the status, and a sentence for whoever reads it.
///
/// The library makes these of requests that it cannot take. A handler may return one as its error:
/// then the client is answered with it, and nobody is told of a failure.
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
}

impl Problem {
    /// Answers with this status.
    #[must_use]
    pub fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What the client is told.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The one that an error of a reader has in it, if it has.
    ///
    /// ```
    /// use socketserver::http::{Limits, Problem, RequestHead, StatusCode};
    ///
    /// let error = RequestHead::read(&mut &b"GET / HTTP/3.0\r\n\r\n"[..], &Limits::default()).unwrap_err();
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
    }
}

/// What a reader of a body meets.
impl From<Problem> for io::Error {
    fn from(problem: Problem) -> Self {
        let kind = match problem.status {
            StatusCode::REQUEST_TIMEOUT => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, problem)
    }
}
