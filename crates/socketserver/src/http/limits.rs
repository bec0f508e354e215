//! How much of a request is taken.

use std::time::Duration;

/// The limits on requests. Whoever exceeds one is answered with the status given here, and the
/// connection is closed.
///
/// | Limit | Default | Bounds | Beyond it |
/// |---|---|---|---|
/// | `request_line` | 8 KiB | the method, the target and the version | 414 |
/// | `header` | 16 KiB | all fields; those behind a chunked body once more | 431 |
/// | `fields` | 100 | how many there are | 431 |
/// | `header_read_timeout` | 30 s | from the first byte of a request to the end of its fields | 408 |
/// | `body` | 1 MiB | the body, unless the handler [says otherwise](crate::http::Request::limit_body) | 413 |
/// | `chunk_extensions` | 4 KiB | what a chunked body has beside its data and its fields | 400 |
/// | `max_discard` | 256 KiB | what is read and thrown away of a body that the handler has left | it is closed |
///
/// RFC 9112, 3 recommends to take request lines of at least 8000 bytes. A body and a head must also
/// arrive at the [`receive_rate`](crate::Timeouts::receive_rate) of the connection (408).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpLimits {
    /// The longest request line, in bytes without its end.
    pub request_line: usize,
    /// The longest header section, in bytes.
    pub header: usize,
    /// The most fields.
    pub max_headers: usize,
    /// How long all this may take.
    pub header_read_timeout: Option<Duration>,
    /// The longest body, in bytes.
    pub body: u64,
    /// The most that the sizes of chunks may have beside them, in bytes and for the whole body.
    pub chunk_extensions: usize,
    /// The most that is thrown away so that the connection can be kept, in bytes.
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
    /// The defaults.
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

    /// Sets how many fields a header section may have.
    #[must_use]
    pub fn max_headers(mut self, count: usize) -> Self {
        self.max_headers = count;
        self
    }

    /// Sets how long a head may take to arrive.
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

    /// Sets how much a chunked body may have beside its data.
    #[must_use]
    pub fn chunk_extensions(mut self, bytes: usize) -> Self {
        self.chunk_extensions = bytes;
        self
    }

    /// Sets how much is thrown away.
    #[must_use]
    pub fn max_discard(mut self, bytes: u64) -> Self {
        self.max_discard = bytes;
        self
    }
}
