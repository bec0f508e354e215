//! The codecs for lines that end with `\n` or `\r\n`, as bytes or as text.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

use super::{Decoder, Encoder, FrameError};

/// Lines of bytes in any encoding.
///
/// * A line ends with `\n` or `\r\n`, which does not belong to the message. If the peer closes the
///   stream after an incomplete line, this line is a message, too.
/// * The limit applies to received lines and counts the bytes before the line end. A longer line is
///   reported once and skipped. Decoding continues with the next line.
/// * A sent line ends with `\n`. If the message ends with `\r`, the sent line ends with `\r\n`,
///   because the peer would take the `\r` for a part of the line end. A message that contains `\n`
///   is rejected, because it would arrive as two messages.
///
/// ```
/// use socketserver::framing::{Framed, FrameError, Lines};
///
/// let wire = &b"one\r\ntwo\nmuch too long\nthree"[..];
/// let mut lines = Framed::new(wire, Lines::default().max_len(5));
/// assert_eq!(lines.read()?.unwrap(), "one");
/// assert_eq!(lines.read()?.unwrap(), "two");
/// assert!(matches!(lines.read(), Err(FrameError::TooLong { limit: 5, .. })));
/// assert_eq!(lines.read()?.unwrap(), "three");
/// assert!(lines.read()?.is_none());
/// # Ok::<(), FrameError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lines {
    max_len: usize,
    /// The number of bytes at the front that contain no `\n`. The decoder searches each byte only
    /// once, even if a line arrives byte by byte.
    scanned: usize,
    /// True after a too long line was reported, until its end arrives.
    skipping: bool,
}

impl Lines {
    /// The default limit of a line: 64 KiB.
    pub const DEFAULT_MAX_LEN: usize = 64 * 1024;

    /// Sets the maximum length of a received line in bytes, without the line end. Defaults to 64
    /// KiB.
    #[must_use]
    pub fn max_len(mut self, max_len: usize) -> Self {
        self.max_len = max_len;
        self
    }

    /// Converts the codec to a codec of text: [`Utf8Lines`].
    #[must_use]
    pub fn utf8(self) -> Utf8Lines {
        Utf8Lines(self)
    }

    /// Takes the line in `src[..end]` and removes `taken` bytes from `src`.
    fn take(&mut self, src: &mut BytesMut, end: usize, taken: usize) -> Result<Bytes, FrameError> {
        self.scanned = 0;
        let mut line = src.split_to(taken);
        if end > self.max_len {
            return Err(self.too_long(end));
        }
        line.truncate(end);
        Ok(line.freeze())
    }

    fn too_long(&self, len: usize) -> FrameError {
        FrameError::TooLong {
            limit: self.max_len as u64,
            claimed: len as u64,
        }
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            max_len: Self::DEFAULT_MAX_LEN,
            scanned: 0,
            skipping: false,
        }
    }
}

impl Decoder for Lines {
    type Item = Bytes;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        if self.skipping {
            let Some(end) = memchr(b'\n', src) else {
                src.clear();
                return Ok(None);
            };
            src.advance(end + 1);
            self.skipping = false;
        }
        let scanned = self.scanned.min(src.len());
        if let Some(more) = memchr(b'\n', &src[scanned..]) {
            let end = scanned + more;
            let text = end - usize::from(src[..end].ends_with(b"\r"));
            return self.take(src, text, end + 1).map(Some);
        }
        // A `\r` may belong to the line end.
        let text = src.len() - usize::from(src.ends_with(b"\r"));
        if text > self.max_len {
            src.clear();
            (self.scanned, self.skipping) = (0, true);
            return Err(self.too_long(text));
        }
        self.scanned = src.len();
        Ok(None)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        match self.decode(src)? {
            None if !src.is_empty() => self.take(src, src.len(), src.len()).map(Some),
            line => Ok(line),
        }
    }

    fn buffer_limit(&self) -> usize {
        self.max_len.saturating_add(2)
    }

    fn is_recoverable(&self, error: &FrameError) -> bool {
        matches!(error, FrameError::TooLong { .. })
    }
}

impl<T: AsRef<[u8]>> Encoder<T> for Lines {
    type Error = FrameError;

    fn encode(&mut self, item: T, dst: &mut BytesMut) -> Result<(), FrameError> {
        let line = item.as_ref();
        if memchr(b'\n', line).is_some() {
            return Err(FrameError::Unsendable(
                "a line must not contain a line end; send each line separately".into(),
            ));
        }
        let end: &[u8] = if line.ends_with(b"\r") {
            b"\r\n"
        } else {
            b"\n"
        };
        dst.reserve(line.len() + end.len());
        dst.extend_from_slice(line);
        dst.extend_from_slice(end);
        Ok(())
    }
}

/// Lines of UTF-8 text; created by [`Lines::utf8`].
///
/// A line that is not UTF-8 is reported. Decoding continues with the next line.
///
/// ```
/// use socketserver::framing::{Framed, FrameError, Lines};
///
/// let wire = &b"na\xc3\xafve\nna\xefve\nyes\n"[..];
/// let mut lines = Framed::new(wire, Lines::default().utf8());
/// assert_eq!(lines.read()?.as_deref(), Some("naïve"));
/// assert!(matches!(lines.read(), Err(FrameError::Malformed { .. })));
/// assert_eq!(lines.read()?.as_deref(), Some("yes"));
/// # Ok::<(), FrameError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Utf8Lines(Lines);

impl Utf8Lines {
    fn text(line: Option<Bytes>) -> Result<Option<String>, FrameError> {
        line.map(|line| match str::from_utf8(&line) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(FrameError::malformed_by("the line is not UTF-8", error)),
        })
        .transpose()
    }
}

impl Decoder for Utf8Lines {
    type Item = String;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<String>, FrameError> {
        Self::text(self.0.decode(src)?)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<String>, FrameError> {
        Self::text(self.0.decode_eof(src)?)
    }

    fn buffer_limit(&self) -> usize {
        self.0.buffer_limit()
    }

    fn is_recoverable(&self, error: &FrameError) -> bool {
        matches!(
            error,
            FrameError::TooLong { .. } | FrameError::Malformed { .. }
        )
    }
}

impl<T: AsRef<str>> Encoder<T> for Utf8Lines {
    type Error = FrameError;

    fn encode(&mut self, item: T, dst: &mut BytesMut) -> Result<(), FrameError> {
        self.0.encode(item.as_ref(), dst)
    }
}
