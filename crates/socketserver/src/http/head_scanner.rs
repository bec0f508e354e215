//! Where the head of a request ends. Nothing is understood of it here but its lines.
//!
//! RFC 9112, 2.2 allows a server to take a single LF for the end of a line; what is one line for us
//! is two for whoever forwards to us and does not, so none is taken. A single CR is refused for the
//! same reason, as it has to be.

use memchr::memchr2;

use super::HttpLimits;
use super::head::RequestLine;
use super::problem::{Problem, bad, problem};
use ::http::StatusCode;

/// Looks for the end of a head in what has arrived so far, byte by byte only once.
#[derive(Debug, Default)]
pub(super) struct HeadScanner {
    /// How far it has looked.
    at: usize,
    /// Where the line begins that it is in.
    line: usize,
    /// Understood as soon as it is there: who is refused for it does not have to send the rest.
    request_line: Option<RequestLine>,
    /// Where the fields begin.
    header: usize,
    fields: usize,
}

impl HeadScanner {
    /// Goes on with `bytes`, which begin as they did in the last call. Where the head ends, behind
    /// its empty line; `None` if that has not arrived.
    pub fn advance(&mut self, bytes: &[u8], limits: &HttpLimits) -> Result<Option<usize>, Problem> {
        while let Some(found) = memchr2(b'\r', b'\n', &bytes[self.at..]) {
            let end = self.at + found;
            self.check(bytes, end, limits)?;
            match bytes[end..] {
                [b'\r', b'\n', ..] => {}
                [b'\r'] => {
                    self.at = end;
                    return Ok(None);
                }
                [b'\r', ..] => return Err(bad("there is a CR that ends no line")),
                _ => return Err(bad("a line ends without a CR")),
            }
            let is_empty = end == self.line;
            self.at = end + 2;
            match self.request_line {
                // RFC 9112, 2.2: at least one empty line before a request SHOULD be ignored.
                None if is_empty && end == 0 => {}
                None if is_empty => return Err(bad("there is no request line")),
                None => {
                    self.request_line = Some(RequestLine::parse(&bytes[self.line..end])?);
                    self.header = self.at;
                }
                Some(_) if is_empty => return Ok(Some(self.at)),
                Some(_) => self.fields += 1,
            }
            self.line = self.at;
        }
        self.at = bytes.len();
        self.check(bytes, self.at, limits)?;
        Ok(None)
    }

    /// The request line, and where the fields begin; once the end was found.
    pub fn into_parts(self) -> Option<(RequestLine, usize)> {
        Some((self.request_line?, self.header))
    }

    /// Whether what has been read up to `at` is too much.
    fn check(&self, bytes: &[u8], at: usize, limits: &HttpLimits) -> Result<(), Problem> {
        match self.request_line {
            None if !may_begin(&bytes[self.line..]) => Err(bad("this is no request of HTTP/1.1")),
            None if at - self.line > limits.request_line => Err(problem(
                StatusCode::URI_TOO_LONG,
                "the request line is too long",
            )),
            Some(_) if at - self.header > limits.header => Err(problem(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the header is too long",
            )),
            Some(_) if self.fields > limits.max_headers => Err(problem(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the header has too many fields",
            )),
            _ => Ok(()),
        }
    }
}

/// Whether a request line may begin so: who speaks TLS, or anything else, waits for an answer before
/// there is an end of a line.
fn may_begin(bytes: &[u8]) -> bool {
    bytes
        .first()
        .is_none_or(|byte| byte.is_ascii_graphic() || b"\r\n".contains(byte))
}
