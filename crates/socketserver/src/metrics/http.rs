//! The subset of HTTP/1.1 that the metrics endpoint needs: one request per connection, without a
//! body. [RFC 9112](https://www.rfc-editor.org/rfc/rfc9112) defines the syntax, [RFC
//! 9110](https://www.rfc-editor.org/rfc/rfc9110) the semantics.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::time::{SystemTime, UNIX_EPOCH};

/// The maximum size of a request line and its header.
pub(super) const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 64;

/// A parsed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// The path without the query.
    pub(super) path: String,
}

/// The status of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    HeaderTooLarge,
    Unavailable,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::HeaderTooLarge => "431 Request Header Fields Too Large",
            Self::Unavailable => "503 Service Unavailable",
        }
    }
}

/// Reads a request. Returns `None` if the peer closes the connection without sending a byte, as
/// port scans do.
pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Result<Request, Status>>> {
    let mut head = [0; MAX_HEAD];
    let mut filled = 0;
    loop {
        if filled == head.len() {
            return Ok(Some(Err(Status::HeaderTooLarge)));
        }
        let n = from.read(&mut head[filled..])?;
        filled += n;
        if filled == 0 {
            return Ok(None);
        }
        match parse(&head[..filled]) {
            None if n == 0 => return Ok(Some(Err(Status::BadRequest))),
            None => {}
            parsed => return Ok(parsed),
        }
    }
}

/// Parses a request. Returns `None` if the header is incomplete.
fn parse(head: &[u8]) -> Option<Result<Request, Status>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Some(Err(Status::HeaderTooLarge)),
        Err(_) => return Some(Err(Status::BadRequest)),
    }
    let hosts = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("host"))
        .count();
    // RFC 9112, 3.2: a server "MUST respond with a 400" if HTTP/1.1 comes without a Host, or with
    // more than one.
    if hosts > 1 || (hosts == 0 && request.version == Some(1)) {
        return Some(Err(Status::BadRequest));
    }
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Some(Err(Status::BadRequest));
    };
    Some(Ok(Request {
        method: method.into(),
        path: path(target).into(),
    }))
}

/// Returns the path of a target in origin form, or in absolute form, which "a server MUST accept"
/// (RFC 9112, 3.2.2).
fn path(target: &str) -> &str {
    let absolute = target
        .split_once("://")
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http"));
    let path = match absolute {
        Some((_, rest)) => rest.find(['/', '?']).map_or("/", |at| &rest[at..]),
        None => target,
    };
    path.split('?').next().unwrap_or_default()
}

/// Formats a response. A response to HEAD has no body, but the same `Content-Length`.
pub(super) fn response(status: Status, media_type: &str, body: &str, with_body: bool) -> String {
    let mut out = String::with_capacity(256 + body.len());
    let _ = write!(
        out,
        "HTTP/1.1 {}\r\nDate: {}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n",
        status.line(),
        date(SystemTime::now()),
        body.len(),
    );
    if status == Status::MethodNotAllowed {
        out.push_str("Allow: GET, HEAD\r\n");
    }
    out.push_str("\r\n");
    if with_body {
        out.push_str(body);
    }
    out
}

/// Formats a time for HTTP (RFC 9110, 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
fn date(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let weekday = DAYS[usize::try_from(days % 7).unwrap_or_default()];
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (day, month) = (days + 1, MONTHS[month]);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse_whole(head: &str) -> Option<Result<Request, Status>> {
        read(&mut head.as_bytes()).expect("a slice never fails")
    }

    #[test]
    fn origin_and_absolute_targets_are_parsed() {
        for (target, expected) in [
            ("/metrics", "/metrics"),
            ("/metrics?name[]=a", "/metrics"),
            ("/", "/"),
            ("http://host:9100/readyz", "/readyz"),
            ("HTTP://host/readyz?x", "/readyz"),
            ("http://host", "/"),
            ("http://host?x=/y", ""),
            ("*", "*"),
        ] {
            assert_eq!(path(target), expected, "{target}");
        }
    }

    #[test]
    fn request_in_single_bytes_is_read() {
        struct Trickle<'a>(&'a [u8]);
        impl Read for Trickle<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let n = self.0.len().min(1);
                into[..n].copy_from_slice(&self.0[..n]);
                self.0 = &self.0[n..];
                Ok(n)
            }
        }
        let head = b"HEAD /livez HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n";
        let request = read(&mut Trickle(head)).unwrap().unwrap().unwrap();
        assert_eq!((&*request.method, &*request.path), ("HEAD", "/livez"));
    }

    #[test]
    fn malformed_request_is_a_bad_request() {
        for head in [
            "GET /metrics HTTP/1.1\r\n\r\n",
            "GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET /metrics HTTP/1.1\r\nHost",
            "GET /metrics\r\n\r\n",
            "GET /metrics HTTP/3.1\r\nHost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01",
            "GET /\u{0} HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(parse_whole(head), Some(Err(Status::BadRequest)), "{head:?}");
        }
        assert_eq!(parse_whole(""), None);
        assert!(matches!(parse_whole("GET / HTTP/1.0\r\n\r\n"), Some(Ok(_))));
    }

    #[test]
    fn header_above_the_limits_is_rejected() {
        let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(MAX_HEAD));
        assert_eq!(parse_whole(&long), Some(Err(Status::HeaderTooLarge)));
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "A: b\r\n".repeat(MAX_HEADERS + 1)
        );
        assert_eq!(parse_whole(&many), Some(Err(Status::HeaderTooLarge)));
    }

    #[test]
    fn dates_match_the_calendar() {
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_827_696, "Tue, 29 Feb 2000 12:34:56 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
