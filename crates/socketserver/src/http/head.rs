//! The head of a request: its first line and its fields, understood and checked.
//!
//! The checks are strict, so that this server and any proxy before it agree about where a request
//! ends: [RFC 9112, 11.2](https://www.rfc-editor.org/rfc/rfc9112#section-11.2).

use std::fmt;
use std::io::{self, BufRead};

use ::http::header::{CONNECTION, EXPECT, HOST};
use ::http::uri::Authority;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};

use super::HttpLimits;
use super::body_length::BodyLength;
use super::head_scanner::HeadScanner;
use super::problem::{Problem, bad, problem};
use super::request_target;

/// The request line and the fields of a request.
///
/// ```
/// use socketserver::http::{HttpLimits, RequestHead};
///
/// let bytes = b"GET /a?b HTTP/1.1\r\nHost: example.org\r\n\r\nwhat follows";
/// let (head, length) = RequestHead::parse(bytes, &HttpLimits::default())?.unwrap();
/// assert_eq!((head.path(), head.query()), ("/a", Some("b")));
/// assert_eq!(&bytes[length..], b"what follows");
/// # Ok::<(), socketserver::http::Problem>(())
/// ```
#[derive(Clone)]
pub struct RequestHead {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    framing: BodyLength,
}

impl RequestHead {
    /// Parses the head at the beginning of `bytes`, and returns it with its length. Returns `None`
    /// if the head is incomplete. The function does not block and reads no stream.
    ///
    /// # Errors
    /// Returns the [`Problem`] to respond with. The connection has to be closed then.
    pub fn parse(bytes: &[u8], limits: &HttpLimits) -> Result<Option<(Self, usize)>, Problem> {
        let mut scan = HeadScanner::default();
        match scan.advance(bytes, limits)? {
            Some(end) => Ok(Some((Self::of(&bytes[..end], scan)?, end))),
            None => Ok(None),
        }
    }

    /// Reads a head from a stream, and no byte after it. Returns `None` if the stream ends before
    /// the head begins.
    ///
    /// # Errors
    /// Returns an error of the stream, or a [`Problem`] to respond with. In both cases the bytes
    /// read so far are lost.
    pub fn read(from: &mut impl BufRead, limits: &HttpLimits) -> io::Result<Option<Self>> {
        match HeadReader::default().read(from, limits, |_| true)? {
            Took::Head(head) => Ok(Some(head)),
            Took::End | Took::Part => Ok(None),
        }
    }

    /// Parses a complete head.
    fn of(bytes: &[u8], scan: HeadScanner) -> Result<Self, Problem> {
        let Some((line, header)) = scan.into_parts() else {
            return Err(bad("there is no request line"));
        };
        let RequestLine {
            method,
            uri,
            version,
        } = line;
        let headers = fields(&bytes[header..])?;
        check_host(&uri, version, &headers)?;
        let framing = BodyLength::of_request(&method, version, &headers)?;
        Ok(Self {
            method,
            uri,
            version,
            headers,
            framing,
        })
    }

    /// Returns the method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the target. In most cases it is a path and a query. It has a scheme and a host if
    /// the client takes this server for a proxy. It can also be `*`.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Returns the path of the target as it was sent, with its escapes.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// Returns the part of the target after the `?`.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    /// Returns HTTP/1.0 or HTTP/1.1. A later 1.x counts as 1.1 (RFC 9110, 2.5).
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns the fields.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the first field of a name, if its value is text.
    ///
    /// ```
    /// # use socketserver::http::{HttpLimits, RequestHead};
    /// # let bytes = b"GET / HTTP/1.0\r\nAccept: text/html\r\n\r\n";
    /// # let (head, _) = RequestHead::parse(bytes, &HttpLimits::default())?.unwrap();
    /// assert_eq!(head.header("accept"), Some("text/html"));
    /// # Ok::<(), socketserver::http::Problem>(())
    /// ```
    #[must_use]
    pub fn header(&self, name: impl ::http::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the value of a field that occurs once, if it is text.
    pub(crate) fn only(&self, name: HeaderName) -> Option<&str> {
        only(&self.headers, name)
    }

    pub(super) fn framing(&self) -> BodyLength {
        self.framing
    }

    /// Returns true if the client wants to keep the connection (RFC 9112, 9.3).
    pub(super) fn wants_to_stay(&self) -> bool {
        let has =
            |option: &str| list(&self.headers, CONNECTION).any(|o| o.eq_ignore_ascii_case(option));
        !has("close") && (self.version == Version::HTTP_11 || has("keep-alive"))
    }

    /// Returns true if the client waits for `100 Continue` before it sends the body (RFC 9110,
    /// 10.1.1). HTTP/1.0 has no such expectation.
    pub(super) fn expects_continue(&self) -> Result<bool, Problem> {
        if self.version == Version::HTTP_10 || !self.headers.contains_key(EXPECT) {
            return Ok(false);
        }
        if list(&self.headers, EXPECT).all(|it| it.eq_ignore_ascii_case("100-continue")) {
            return Ok(true);
        }
        Err(problem(
            StatusCode::EXPECTATION_FAILED,
            "only 100-continue can be expected",
        ))
    }
}

/// A head that is being received.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    scan: HeadScanner,
    /// Bytes taken from the stream that hold only a part of the head.
    taken: Vec<u8>,
}

/// The result of reading a head.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
pub(super) enum Took {
    Head(RequestHead),
    /// The stream ended before the head began.
    End,
    /// The head is incomplete, and the caller does not wait for the rest now.
    Part,
}

impl HeadReader {
    /// Continues to read a head, and no byte after it. `goes_on` is called before each read for
    /// more of a head that has begun.
    pub(super) fn read<S: BufRead>(
        &mut self,
        from: &mut S,
        limits: &HttpLimits,
        mut goes_on: impl FnMut(&mut S) -> bool,
    ) -> io::Result<Took> {
        let Self { scan, taken } = self;
        loop {
            let some = match from.fill_buf() {
                Ok([]) if taken.is_empty() => return Ok(Took::End),
                Ok([]) => return Err(bad("the request ended within its head").into()),
                Ok(some) => some,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let before = taken.len();
            let bytes = if before == 0 {
                some
            } else {
                taken.extend_from_slice(some);
                &taken[..]
            };
            if let Some(end) = scan.advance(bytes, limits)? {
                let head = RequestHead::of(&bytes[..end], std::mem::take(scan))?;
                from.consume(end - before);
                return Ok(Took::Head(head));
            }
            let count = some.len();
            if before == 0 {
                *taken = some.to_vec();
            }
            from.consume(count);
            if !goes_on(from) {
                return Ok(Took::Part);
            }
        }
    }
}

impl fmt::Debug for RequestHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", &self.method)
            .field("uri", &self.uri)
            .field("version", &self.version)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// Returns the elements of all fields of a name that is a list (RFC 9110, 5.6.1).
pub(super) fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .map(|element| element.trim_matches([' ', '\t']))
        .filter(|element| !element.is_empty())
}

/// The parts of the request line.
#[derive(Debug)]
pub(super) struct RequestLine {
    method: Method,
    uri: Uri,
    version: Version,
}

impl RequestLine {
    /// Parses a request line. Single spaces separate its parts, because lenient parsers differ (RFC
    /// 9112, 3).
    pub fn parse(line: &[u8]) -> Result<Self, Problem> {
        let mut parts = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad("the request line is not METHOD TARGET HTTP/1.1"));
        };
        let method = Method::from_bytes(method).map_err(|_| bad("the method is no token"))?;
        let version = match version {
            b"HTTP/1.0" => Version::HTTP_10,
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9'] => Version::HTTP_11,
            [b'H', b'T', b'T', b'P', b'/', b'2'..=b'9', b'.', b'0'..=b'9'] => {
                return Err(problem(
                    StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                    "this server speaks HTTP/1.1",
                ));
            }
            _ => return Err(bad("the request line has no version of HTTP")),
        };
        let uri = request_target::parse(&method, target)?;
        Ok(Self {
            method,
            uri,
            version,
        })
    }
}

/// Parses the fields of a header or trailer section, with the empty line that ends it.
pub(super) fn fields(bytes: &[u8]) -> Result<HeaderMap, Problem> {
    // The scanner has checked that each line ends in CRLF.
    let count = memchr::memchr_iter(b'\n', bytes).count();
    let mut parsed = vec![httparse::EMPTY_HEADER; count];
    let Ok(httparse::Status::Complete((_, parsed))) = httparse::parse_headers(bytes, &mut parsed)
    else {
        return Err(bad(
            "a field is not \"Name: value\" on one line, or has characters that it may not have",
        ));
    };
    let mut headers = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(field.name.as_bytes()),
            HeaderValue::from_bytes(field.value),
        ) else {
            return Err(bad("a field has characters that it may not have"));
        };
        headers.append(name, value);
    }
    Ok(headers)
}

/// Returns the value of a field that occurs once, if it is text. Several values of such a field
/// contradict each other.
pub(super) fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// Checks the Host field. RFC 9112, 3.2 requires a 400 if HTTP/1.1 comes without a Host, with
/// several, or with an invalid one.
fn check_host(uri: &Uri, version: Version, headers: &HeaderMap) -> Result<(), Problem> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version == Version::HTTP_10 => Ok(()),
        (None, _) => Err(bad("there is no Host")),
        (Some(_), Some(_)) => Err(bad("there are several Hosts")),
        (Some(host), None) => {
            let is_valid = |host: &HeaderValue| {
                // The grammar is "host [: port]", without a user name.
                host.is_empty()
                    || (!host.as_bytes().contains(&b'@')
                        && Authority::try_from(host.as_bytes()).is_ok())
            };
            if !is_valid(host) {
                return Err(bad("the Host is none"));
            }
            // A proxy may use the target or the Host field (RFC 9112, 3.2.2).
            let port: &[u8] = match uri.scheme_str() {
                Some("http") => b":80",
                Some("https") => b":443",
                _ => b"",
            };
            let named = |host: &[u8]| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
            match uri.authority() {
                Some(target) if named(target.as_str().as_bytes()) != named(host.as_bytes()) => {
                    Err(bad("the target and the Host name different hosts"))
                }
                _ => Ok(()),
            }
        }
    }
}
