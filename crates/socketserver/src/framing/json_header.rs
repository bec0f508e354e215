//! The codec for whole frames with a JSON header that contains the length of the body.
//! `json_body.rs` reads and writes bodies in pieces.

use bytes::{Buf, Bytes, BytesMut};
use serde_json::{Map, Value};

use super::{DEFAULT_MAX_LEN, Decoder, Encoder, FrameError};

/// Frames of three parts: the length of the header in four bytes (signed, little-endian), the
/// header, and the body. The header is JSON in UTF-8, `{"dataBodyLength": 5}`.
///
/// The encoder writes a header byte for byte like Python's `json.dumps`. The decoder accepts any
/// JSON object with the member `dataBodyLength` that nests 16 levels at most, and ignores other members. The methods for bodies
/// in pieces can read and send other members.
///
/// Use `read_body` and `write_body` of [`Framed`](super::Framed) for a large body that should not
/// be in memory as a whole.
///
/// ```
/// use socketserver::framing::{BytesMut, Decoder, Encoder, FrameError, JsonHeader};
///
/// let mut codec = JsonHeader::default();
/// let mut wire = BytesMut::new();
/// codec.encode("hello", &mut wire)?;
/// assert_eq!(wire, &b"\x15\0\0\0{\"dataBodyLength\": 5}hello"[..]);
/// assert_eq!(codec.decode(&mut wire)?.unwrap(), "hello");
/// # Ok::<(), FrameError>(())
/// ```
#[derive(Clone, Debug)]
pub struct JsonHeader {
    max_header: usize,
    max_body: u64,
    pub(super) incoming: Incoming,
    /// The last decoded header.
    pub(super) header: Map<String, Value>,
    /// The number of bytes of an announced body that were not sent yet.
    pub(super) unsent: u64,
}

/// The expected content of the next bytes from the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Head,
    /// A whole body of this length.
    Body(u64),
    /// The rest of a body that is read in pieces. The decoder skips it if the application does not
    /// read it.
    Rest(u64),
}

impl JsonHeader {
    /// The default limit of a header: 4 KiB.
    pub const DEFAULT_MAX_HEADER: usize = 4096;

    /// Sets the maximum length of a header in bytes. Defaults to 4 KiB.
    #[must_use]
    pub const fn max_header(mut self, max_header: usize) -> Self {
        self.max_header = max_header;
        self
    }

    /// Sets the maximum length of a received or sent body in bytes. Defaults to
    /// [`DEFAULT_MAX_LEN`].
    #[must_use]
    pub const fn max_body(mut self, max_body: u64) -> Self {
        self.max_body = max_body;
        self
    }

    /// Takes a header, and the unread rest of the previous body. Returns the length of the next
    /// body.
    pub(super) fn decode_head(&mut self, src: &mut BytesMut) -> Result<Option<u64>, FrameError> {
        if let Incoming::Body(length) = self.incoming {
            return Ok(Some(length));
        }
        if let Incoming::Rest(left) = &mut self.incoming {
            let skipped = src.len().min(clamped(*left));
            src.advance(skipped);
            *left -= skipped as u64;
            if *left > 0 {
                return Ok(None);
            }
            self.incoming = Incoming::Head;
        }
        let Some(begin) = src.first_chunk() else {
            return Ok(None);
        };
        let end = 4 + self.header_length(*begin)?;
        let Some(header) = src.get(4..end) else {
            return Ok(None);
        };
        let header = parse(header)?;
        let length = self.body_length(&header)?;
        src.advance(end);
        self.header = header;
        self.incoming = Incoming::Body(length);
        Ok(Some(length))
    }

    /// Returns an error if the stream ends within a frame.
    pub(super) fn check_end(&self, src: &BytesMut) -> Result<(), FrameError> {
        match self.incoming {
            Incoming::Head if src.is_empty() => Ok(()),
            _ => Err(FrameError::UnexpectedEnd),
        }
    }

    pub(super) fn encode_head(
        &self,
        length: u64,
        members: &Map<String, Value>,
        dst: &mut BytesMut,
    ) -> Result<(), FrameError> {
        if self.unsent > 0 {
            return Err(FrameError::Unsendable(
                format!("the previous body is {} bytes short", self.unsent).into(),
            ));
        }
        if length > self.max_body {
            return Err(FrameError::too_long_to_send(length, self.max_body));
        }
        let mut header = format!("{{\"dataBodyLength\": {length}");
        for (name, value) in members {
            header += &format!(", {}: {value}", Value::from(name.as_str()));
        }
        header.push('}');
        if header.len() > self.max_header {
            let (len, limit) = (header.len() as u64, self.max_header as u64);
            return Err(FrameError::too_long_to_send(len, limit));
        }
        dst.extend_from_slice(&(header.len() as u64).to_le_bytes()[..4]);
        dst.extend_from_slice(header.as_bytes());
        Ok(())
    }

    pub(super) fn head_limit(&self) -> usize {
        self.max_header.saturating_add(4)
    }

    fn header_length(&self, begin: [u8; 4]) -> Result<usize, FrameError> {
        let claimed = i32::from_le_bytes(begin);
        let Ok(length) = usize::try_from(claimed) else {
            return Err(FrameError::malformed("the header's length is negative"));
        };
        if length > self.max_header {
            return Err(FrameError::TooLong {
                limit: self.max_header as u64,
                claimed: length as u64,
            });
        }
        Ok(length)
    }

    fn body_length(&self, header: &Map<String, Value>) -> Result<u64, FrameError> {
        let Some(claimed) = header.get("dataBodyLength").and_then(Value::as_u64) else {
            return Err(FrameError::malformed(NO_LENGTH));
        };
        if claimed > self.max_body {
            return Err(FrameError::TooLong {
                limit: self.max_body,
                claimed,
            });
        }
        Ok(claimed)
    }
}

impl Default for JsonHeader {
    fn default() -> Self {
        Self {
            max_header: Self::DEFAULT_MAX_HEADER,
            max_body: DEFAULT_MAX_LEN as u64,
            incoming: Incoming::Head,
            header: Map::new(),
            unsent: 0,
        }
    }
}

impl Decoder for JsonHeader {
    type Item = Bytes;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.decode_head(src)? else {
            return Ok(None);
        };
        if (src.len() as u64) < length {
            return Ok(None);
        }
        self.incoming = Incoming::Head;
        Ok(Some(src.split_to(clamped(length)).freeze()))
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        match self.decode(src)? {
            None => self.check_end(src).map(|()| None),
            body => Ok(body),
        }
    }

    fn buffer_limit(&self) -> usize {
        self.head_limit().max(clamped(self.max_body))
    }
}

impl<T: AsRef<[u8]>> Encoder<T> for JsonHeader {
    type Error = FrameError;

    fn encode(&mut self, item: T, dst: &mut BytesMut) -> Result<(), FrameError> {
        let body = item.as_ref();
        self.encode_head(body.len() as u64, &Map::new(), dst)?;
        dst.extend_from_slice(body);
        Ok(())
    }
}

const NO_LENGTH: &str = "the header is not an object with a number of bytes in dataBodyLength";

/// How deep the values of a header may nest, itself included. The parser recurses, and takes some 500
/// bytes of stack for each level, or 1.7 KiB in a debug build.
const MAX_DEPTH: usize = 16;

fn parse(header: &[u8]) -> Result<Map<String, Value>, FrameError> {
    if depth(header) > MAX_DEPTH {
        return Err(FrameError::malformed(
            "the header is not JSON that nests 16 levels at most",
        ));
    }
    match serde_json::from_slice(header) {
        Ok(Value::Object(header)) => Ok(header),
        Ok(_) => Err(FrameError::malformed(NO_LENGTH)),
        Err(error) => Err(FrameError::malformed_by("the header is not JSON", error)),
    }
}

/// How many brackets are open at most; of what is not JSON, any number.
fn depth(json: &[u8]) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                open += 1;
                most = most.max(open);
            }
            b']' | b'}' if !in_string => open = open.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// Converts a length on the wire to a length in memory. Where `usize` is smaller, the result is
/// `usize::MAX`.
fn clamped(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(header: &str) -> Result<Option<Bytes>, FrameError> {
        let length = u32::try_from(header.len()).unwrap().to_le_bytes();
        let mut wire = BytesMut::from(&[&length[..], header.as_bytes()].concat()[..]);
        JsonHeader::default().decode(&mut wire)
    }

    #[test]
    fn a_header_nests_sixteen_levels_and_no_more() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!("{{\"dataBodyLength\": 0, \"x\": {open}{close}}}")
        };
        // Itself is one.
        assert_eq!(decode(&nested(15)).unwrap().unwrap(), "");
        let error = decode(&nested(16)).unwrap_err().to_string();
        assert!(error.contains("16 levels"), "{error}");
        assert!(decode(&nested(1000)).is_err());
    }

    #[test]
    fn brackets_in_strings_are_no_levels() {
        let header = format!(
            "{{\"dataBodyLength\": 0, \"x\": \"\\\"{}\"}}",
            "[{".repeat(100)
        );
        assert_eq!(decode(&header).unwrap().unwrap(), "");
        let many = format!(
            "{{\"dataBodyLength\": 0, \"x\": [{}[]]}}",
            "[],".repeat(100)
        );
        assert_eq!(decode(&many).unwrap().unwrap(), "");
    }
}
