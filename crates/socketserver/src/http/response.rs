//! What a handler answers.

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

/// An answer: a status, fields, and a body.
///
/// What frames it is the server's: `ResponseBody-Length`, `Transfer-Encoding`, `Connection` and `Date` are
/// set when it is sent, and any that a handler has set are left out. Nobody gets a body with the
/// answer to `HEAD`, or with a status that has none (1xx, 204, 304).
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
    /// The connection ends with it.
    pub(super) closes: bool,
    /// And goes on with another protocol.
    pub(super) upgrade: Option<Upgrade>,
}

pub(super) enum ResponseBody {
    /// In memory, and parts of files: how long it is, is known.
    Pieces(Vec<Segment>),
    /// So many bytes of a reader.
    Sized(Box<dyn Read + Send>, u64),
    /// A reader to its end.
    Stream(Box<dyn Read + Send>),
}

pub(super) enum Segment {
    Memory(Bytes),
    File(std::sync::Arc<File>, Range<u64>),
}

impl Response {
    /// With nothing in it.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        Self::with(status, ResponseBody::Pieces(Vec::new()))
    }

    /// 200, with these bytes: `Vec<u8>`, `String`, `&'static str`, `Bytes`.
    #[must_use]
    pub fn bytes(body: impl Into<Bytes>) -> Self {
        let piece = Segment::Memory(body.into());
        Self::with(StatusCode::OK, ResponseBody::Pieces(vec![piece]))
    }

    /// 200, with text that is nothing else, in UTF-8.
    #[must_use]
    pub fn text(body: impl Into<String>) -> Self {
        Self::bytes(body.into()).media_type("text/plain; charset=utf-8")
    }

    /// 200, with a page in UTF-8.
    #[must_use]
    pub fn html(body: impl Into<String>) -> Self {
        Self::bytes(body.into()).media_type("text/html; charset=utf-8")
    }

    /// 200, with exactly so many bytes of a reader. If it has fewer, or fails, the connection is cut,
    /// so that the client does not take what it has for all.
    #[must_use]
    pub fn reader(reader: impl Read + Send + 'static, length: u64) -> Self {
        Self::with(
            StatusCode::OK,
            ResponseBody::Sized(Box::new(reader), length),
        )
    }

    /// 200, with all that a reader has, sent in chunks as it comes. Under HTTP/1.0, which has no
    /// chunks, the end of the connection ends it.
    ///
    /// Each read is sent at once, of up to 16 KiB. An error of it cuts the connection.
    #[must_use]
    pub fn stream(reader: impl Read + Send + 'static) -> Self {
        Self::with(StatusCode::OK, ResponseBody::Stream(Box::new(reader)))
    }

    /// A redirection, such as 301 or 303, to a target: usually a path that begins with one slash.
    ///
    /// # Errors
    /// If the target has characters that a field may not have.
    pub fn redirect(status: StatusCode, target: &str) -> crate::Result<Self> {
        Self::new(status).header(LOCATION, target)
    }

    /// Sets the status.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Sets a field, in place of those of the same name.
    ///
    /// # Errors
    /// If it has characters that a field may not have, such as line ends.
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

    /// All fields.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    /// All fields that the handler has set.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The status.
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        self.status
    }

    /// Ends the connection with this answer.
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

    /// How long the body is, where that is known.
    pub(super) fn len(&self) -> Option<u64> {
        match &self.content {
            ResponseBody::Pieces(pieces) => Some(pieces.iter().map(Segment::len).sum()),
            ResponseBody::Sized(_, length) => Some(*length),
            ResponseBody::Stream(_) => None,
        }
    }

    /// What is wrong with it, if it is not final: its client would go on waiting for the answer
    /// (RFC 9110, 15.2). Only 101 ends the exchange, if another protocol follows.
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

    /// Whether an answer of this status has a body (RFC 9110, 6.4.1).
    pub(super) fn may_have_body(&self) -> bool {
        let status = self.status;
        !status.is_informational()
            && ![StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
    }
}

/// A line of text that says what was wrong.
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
