//! The codec for netstrings: `5:hello,`.

use bytes::{Buf, Bytes, BytesMut};

use super::{DEFAULT_MAX_LEN, Decoder, Encoder, FrameError};

/// D. J. Bernstein's netstrings: the length in decimal digits, a colon, the string, and a comma.
///
/// According to [the specification](https://cr.yp.to/proto/netstrings.txt), a length has no leading
/// zeros, and the empty string is `0:,`.
///
/// ```
/// use socketserver::framing::{Framed, FrameError, Netstring};
///
/// let wire = &b"12:hello world!,0:,"[..];
/// let mut strings = Framed::new(wire, Netstring::default());
/// assert_eq!(strings.read()?.unwrap(), "hello world!");
/// assert_eq!(strings.read()?.unwrap(), "");
/// # Ok::<(), FrameError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Netstring {
    max_len: usize,
}

/// The number of digits of `u64::MAX`. A longer number exceeds every limit.
const MAX_DIGITS: usize = 20;

impl Netstring {
    /// Sets the maximum length of a received or sent string in bytes. Defaults to
    /// [`DEFAULT_MAX_LEN`].
    #[must_use]
    pub const fn max_len(mut self, max_len: usize) -> Self {
        self.max_len = max_len;
        self
    }

    /// Returns the start of the string in `src` and its announced length.
    fn head(&self, src: &[u8]) -> Result<Option<(usize, u64)>, FrameError> {
        let mut claimed = 0_u64;
        for (at, byte) in src.iter().enumerate() {
            match byte {
                b'0'..=b'9' if at == MAX_DIGITS => return Err(self.too_long(u64::MAX)),
                b'0'..=b'9' if at > 0 && src[0] == b'0' => {
                    return Err(FrameError::malformed(
                        "a netstring's length begins with a zero",
                    ));
                }
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    claimed = claimed.saturating_mul(10).saturating_add(digit);
                }
                b':' if at > 0 => return Ok(Some((at + 1, claimed))),
                _ => {
                    return Err(FrameError::malformed(
                        "a netstring begins with digits and a colon",
                    ));
                }
            }
        }
        Ok(None)
    }

    fn too_long(&self, claimed: u64) -> FrameError {
        FrameError::TooLong {
            limit: self.max_len as u64,
            claimed,
        }
    }
}

impl Default for Netstring {
    fn default() -> Self {
        Self {
            max_len: DEFAULT_MAX_LEN,
        }
    }
}

impl Decoder for Netstring {
    type Item = Bytes;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        let Some((begin, claimed)) = self.head(src)? else {
            return Ok(None);
        };
        let Some(length) = usize::try_from(claimed).ok().filter(|n| *n <= self.max_len) else {
            return Err(self.too_long(claimed));
        };
        match src[begin..].get(length) {
            None => Ok(None),
            Some(b',') => {
                src.advance(begin);
                let string = src.split_to(length).freeze();
                src.advance(1);
                Ok(Some(string))
            }
            Some(_) => Err(FrameError::malformed("no comma ends the netstring")),
        }
    }

    fn buffer_limit(&self) -> usize {
        self.max_len.saturating_add(MAX_DIGITS + 2)
    }
}

impl<T: AsRef<[u8]>> Encoder<T> for Netstring {
    type Error = FrameError;

    fn encode(&mut self, item: T, dst: &mut BytesMut) -> Result<(), FrameError> {
        let string = item.as_ref();
        if string.len() > self.max_len {
            let limit = self.max_len as u64;
            return Err(FrameError::too_long_to_send(string.len() as u64, limit));
        }
        let head = format!("{}:", string.len());
        dst.reserve(head.len() + string.len() + 1);
        dst.extend_from_slice(head.as_bytes());
        dst.extend_from_slice(string);
        dst.extend_from_slice(b",");
        Ok(())
    }
}
