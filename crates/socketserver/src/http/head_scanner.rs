//! Finds the end of a request head. Only the lines are parsed here.
//!
//! RFC 9112, 2.2 allows a server to take a single LF for a line end. A proxy that does not would
//! see different lines, so this scanner rejects a single LF. It also rejects a single CR, as the
//! RFC requires.

use memchr::memchr2;

use super::HttpLimits;
use super::head::RequestLine;
use super::problem::{Problem, bad, problem};
use ::http::StatusCode;

/// Scans received bytes for the end of a head, each byte once.
#[derive(Debug, Default)]
pub(super) struct HeadScanner {
    /// The number of scanned bytes.
    at: usize,
    /// The beginning of the current line.
    line: usize,
    /// The request line, parsed on arrival so that a bad one is rejected before the rest arrives.
    request_line: Option<RequestLine>,
    /// The beginning of the fields.
    header: usize,
    fields: usize,
}

impl HeadScanner {
    /// Continues with `bytes`, which begin with the bytes of the last call. Returns the position
    /// after the empty line that ends the head, or `None` if that line has not arrived.
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

    /// Returns the request line and the beginning of the fields, once the end was found.
    pub fn into_parts(self) -> Option<(RequestLine, usize)> {
        Some((self.request_line?, self.header))
    }

    /// Checks the bytes up to `at` against the limits.
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

/// Returns true if a request line may begin with `bytes`. A client of another protocol, such as
/// TLS, may wait for a reply before it sends a line end.
fn may_begin(bytes: &[u8]) -> bool {
    bytes
        .first()
        .is_none_or(|byte| byte.is_ascii_graphic() || b"\r\n".contains(byte))
}
