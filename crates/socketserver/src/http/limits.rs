//! Limits on the size and the duration of a request.

use std::time::Duration;

/// The limits on requests. A request that exceeds a limit is rejected with the status given here,
/// and the connection is closed.
///
/// | Limit | Default | Bounds | Beyond it |
/// |---|---|---|---|
/// | `request_line` | 8 KiB | the method, the target and the version | 414 |
/// | `header` | 16 KiB | all fields; the trailers of a chunked body are counted separately | 431 |
/// | `max_headers` | 100 | the number of fields | 431 |
/// | `header_read_timeout` | 30 s | the time from the first byte of a request to the end of its fields | 408 |
/// | `body` | 1 MiB | the body, unless the handler [sets another limit](crate::http::Request::limit_body) | 413 |
/// | `chunk_extensions` | 4 KiB | the bytes of a chunked body other than its data and its fields | 400 |
/// | `max_discard` | 256 KiB | the rest of a body that the handler has not read, which is discarded | the connection is closed |
///
/// RFC 9112, 3 recommends to accept request lines of at least 8000 bytes. A body and a head must
/// also arrive at the [`receive_rate`](crate::Timeouts::receive_rate) of the connection (408).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpLimits {
    /// The longest request line, in bytes without its line end.
    pub request_line: usize,
    /// The longest header section, in bytes.
    pub header: usize,
    /// The maximum number of fields.
    pub max_headers: usize,
    /// The time limit for the head of a request.
    pub header_read_timeout: Option<Duration>,
    /// The longest body, in bytes.
    pub body: u64,
    /// The longest total of chunk extensions of a body, in bytes.
    pub chunk_extensions: usize,
    /// The maximum number of unread body bytes that are discarded to keep the connection.
    pub max_discard: u64,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            request_line: 8 << 10,
            header: 16 << 10,
            max_headers: 100,
            header_read_timeout: Some(Duration::from_secs(30)),
            body: 1 << 20,
            chunk_extensions: 4 << 10,
            max_discard: 256 << 10,
        }
    }
}

impl HttpLimits {
    /// Returns the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the longest request line.
    #[must_use]
    pub fn request_line(mut self, bytes: usize) -> Self {
        self.request_line = bytes;
        self
    }

    /// Sets the longest header section.
    #[must_use]
    pub fn header(mut self, bytes: usize) -> Self {
        self.header = bytes;
        self
    }

    /// Sets the maximum number of fields in a header section.
    #[must_use]
    pub fn max_headers(mut self, count: usize) -> Self {
        self.max_headers = count;
        self
    }

    /// Sets the time limit for the head of a request.
    #[must_use]
    pub fn header_read_timeout(mut self, time: Option<Duration>) -> Self {
        self.header_read_timeout = time;
        self
    }

    /// Sets the longest body.
    #[must_use]
    pub fn body(mut self, bytes: u64) -> Self {
        self.body = bytes;
        self
    }

    /// Sets the longest total of chunk extensions of a body.
    #[must_use]
    pub fn chunk_extensions(mut self, bytes: usize) -> Self {
        self.chunk_extensions = bytes;
        self
    }

    /// Sets the maximum number of unread body bytes that are discarded.
    #[must_use]
    pub fn max_discard(mut self, bytes: u64) -> Self {
        self.max_discard = bytes;
        self
    }
}
