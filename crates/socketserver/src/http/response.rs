//! The response of a handler.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;

use ::http::header::{CONTENT_TYPE, LOCATION};
use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;

use super::Problem;
use super::upgrade::Upgrade;
use crate::user_code::HandlerErrorKind;

/// A response: a status, fields, and a body.
///
/// The server sets the fields `Content-Length`, `Transfer-Encoding`, `Connection` and `Date` when
/// it sends the response. Values that a handler has set for them are left out. No body is sent in
/// response to `HEAD`, or with a status that has none (1xx, 204, 304).
///
/// ```
/// use socketserver::http::{Response, StatusCode};
///
/// let created = Response::text("made\n")
///     .status(StatusCode::CREATED)
///     .header("location", "/notes/7")?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
pub struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) content: ResponseBody,
    /// The connection ends after the response.
    pub(super) closes: bool,
    /// The connection continues with another protocol after the response.
    pub(super) upgrade: Option<Upgrade>,
}

pub(super) enum ResponseBody {
    /// Bytes in memory, and parts of files, with a known length.
    Pieces(Vec<Segment>),
    /// This number of bytes of a reader.
    Sized(Box<dyn Read + Send>, u64),
    /// A reader to its end.
    Stream(Box<dyn Read + Send>),
}

pub(super) enum Segment {
    Memory(Bytes),
    File(std::sync::Arc<File>, Range<u64>),
}

impl Response {
    /// Returns a response without a body.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        Self::with(status, ResponseBody::Pieces(Vec::new()))
    }

    /// Returns a 200 response with these bytes: `Vec<u8>`, `String`, `&'static str`, `Bytes`.
    #[must_use]
    pub fn bytes(body: impl Into<Bytes>) -> Self {
        let piece = Segment::Memory(body.into());
        Self::with(StatusCode::OK, ResponseBody::Pieces(vec![piece]))
    }

    /// Returns a 200 response with plain text in UTF-8.
    #[must_use]
    pub fn text(body: impl Into<String>) -> Self {
        Self::bytes(body.into()).media_type("text/plain; charset=utf-8")
    }

    /// Returns a 200 response with an HTML page in UTF-8.
    #[must_use]
    pub fn html(body: impl Into<String>) -> Self {
        Self::bytes(body.into()).media_type("text/html; charset=utf-8")
    }

    /// Returns a 200 response with exactly `length` bytes of a reader. If the reader has fewer
    /// bytes, or fails, the connection is reset, so that the client does not take a part for the
    /// whole.
    #[must_use]
    pub fn reader(reader: impl Read + Send + 'static, length: u64) -> Self {
        Self::with(
            StatusCode::OK,
            ResponseBody::Sized(Box::new(reader), length),
        )
    }

    /// Returns a 200 response with all bytes of a reader, sent in chunks as they arrive. HTTP/1.0
    /// has no chunks, so there the end of the connection ends the body.
    ///
    /// Each read of up to 16 KiB is sent at once. An error of the reader resets the connection.
    #[must_use]
    pub fn stream(reader: impl Read + Send + 'static) -> Self {
        Self::with(StatusCode::OK, ResponseBody::Stream(Box::new(reader)))
    }

    /// Returns a redirection, such as 301 or 303, to a target: usually a path that begins with one
    /// slash.
    ///
    /// # Errors
    /// Returns an error if the target has characters that a field must not have.
    pub fn redirect(status: StatusCode, target: &str) -> crate::Result<Self> {
        Self::new(status).header(LOCATION, target)
    }

    /// Sets the status.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Sets a field, and replaces fields of the same name.
    ///
    /// # Errors
    /// Returns an error if the field has invalid characters, such as line ends.
    pub fn header<N, V>(mut self, name: N, value: V) -> crate::Result<Self>
    where
        N: TryInto<HeaderName, Error: Into<::http::Error>>,
        V: TryInto<HeaderValue, Error: Into<::http::Error>>,
    {
        let name = name.try_into().map_err(Into::into)?;
        let value = value.try_into().map_err(Into::into)?;
        self.headers.insert(name, value);
        Ok(self)
    }

    /// Returns all fields, for changes.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    /// Returns all fields that the handler has set.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the status.
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        self.status
    }

    /// Closes the connection after this response.
    #[must_use]
    pub fn close(mut self) -> Self {
        self.closes = true;
        self
    }

    pub(super) fn media_type(mut self, media_type: &'static str) -> Self {
        let value = HeaderValue::from_static(media_type);
        self.headers.insert(CONTENT_TYPE, value);
        self
    }

    pub(super) fn with(status: StatusCode, content: ResponseBody) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            content,
            closes: false,
            upgrade: None,
        }
    }

    /// Returns the length of the body, if it is known.
    pub(super) fn len(&self) -> Option<u64> {
        match &self.content {
            ResponseBody::Pieces(pieces) => Some(pieces.iter().map(Segment::len).sum()),
            ResponseBody::Sized(_, length) => Some(*length),
            ResponseBody::Stream(_) => None,
        }
    }

    /// Returns an error if the status is not final, because the client would wait for a further
    /// response (RFC 9110, 15.2). Only 101 ends the exchange, if another protocol follows.
    pub(super) fn not_final(&self) -> Option<HandlerErrorKind> {
        let switches = self.status == StatusCode::SWITCHING_PROTOCOLS && self.upgrade.is_some();
        if switches || !self.status.is_informational() {
            return None;
        }
        let status = self.status.as_u16();
        Some(HandlerErrorKind::Error(format!(
            "the handler has answered with status {status}, which is not final (RFC 9110, 15.2): answer \
             with a final status, or with Response::upgrade"
        ).into()))
    }

    /// Returns true if a response of this status has a body (RFC 9110, 6.4.1).
    pub(super) fn may_have_body(&self) -> bool {
        let status = self.status;
        !status.is_informational()
            && ![StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
    }
}

/// Makes a response with the problem's text as one line.
impl From<&Problem> for Response {
    fn from(problem: &Problem) -> Self {
        let reason = problem.status().canonical_reason().unwrap_or("error");
        let text = format!(
            "{} {reason}: {}\n",
            problem.status().as_u16(),
            problem.message()
        );
        Self::text(text).status(problem.status())
    }
}

impl Segment {
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, range) => range.end - range.start,
        }
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .field("length", &self.len())
            .finish_non_exhaustive()
    }
}
