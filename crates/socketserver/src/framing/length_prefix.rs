//! The codec for frames with a length of 1, 2, 4 or 8 bytes before the body.

use bytes::{Buf, Bytes, BytesMut};

use super::{DEFAULT_MAX_LEN, Decoder, Encoder, FrameError};

/// Frames that begin with the length of their body. The length does not include itself.
///
/// ```
/// use socketserver::framing::{Framed, FrameError, LengthPrefix};
///
/// let wire = &b"\x00\x05hello\x00\x02hi"[..];
/// let mut frames = Framed::new(wire, LengthPrefix::u16_be().max_len(1024));
/// assert_eq!(frames.read()?.unwrap(), "hello");
/// assert_eq!(frames.read()?.unwrap(), "hi");
/// assert!(frames.read()?.is_none());
/// # Ok::<(), FrameError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LengthPrefix {
    width: usize,
    order: Order,
    max_len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Big,
    Little,
}

impl LengthPrefix {
    /// Creates a codec with a length of one byte, up to 255.
    #[must_use]
    pub const fn u8() -> Self {
        Self::new(1, Order::Big)
    }

    /// Creates a codec with a big-endian length of two bytes.
    #[must_use]
    pub const fn u16_be() -> Self {
        Self::new(2, Order::Big)
    }

    /// Creates a codec with a little-endian length of two bytes.
    #[must_use]
    pub const fn u16_le() -> Self {
        Self::new(2, Order::Little)
    }

    /// Creates a codec with a big-endian length of four bytes: network byte order, the most common
    /// format.
    #[must_use]
    pub const fn u32_be() -> Self {
        Self::new(4, Order::Big)
    }

    /// Creates a codec with a little-endian length of four bytes.
    #[must_use]
    pub const fn u32_le() -> Self {
        Self::new(4, Order::Little)
    }

    /// Creates a codec with a big-endian length of eight bytes.
    #[must_use]
    pub const fn u64_be() -> Self {
        Self::new(8, Order::Big)
    }

    /// Creates a codec with a little-endian length of eight bytes.
    #[must_use]
    pub const fn u64_le() -> Self {
        Self::new(8, Order::Little)
    }

    /// Sets the maximum length of a received or sent body in bytes. Defaults to
    /// [`DEFAULT_MAX_LEN`].
    #[must_use]
    pub const fn max_len(mut self, max_len: usize) -> Self {
        self.max_len = max_len;
        self
    }

    const fn new(width: usize, order: Order) -> Self {
        Self {
            width,
            order,
            max_len: DEFAULT_MAX_LEN,
        }
    }

    /// Returns the limit, or the maximum of the length field if that is less.
    fn limit(&self) -> u64 {
        (self.max_len as u64).min(u64::MAX >> (64 - 8 * self.width))
    }

    fn read_length(&self, prefix: &[u8]) -> u64 {
        let mut wide = [0; 8];
        match self.order {
            Order::Big => {
                wide[8 - self.width..].copy_from_slice(prefix);
                u64::from_be_bytes(wide)
            }
            Order::Little => {
                wide[..self.width].copy_from_slice(prefix);
                u64::from_le_bytes(wide)
            }
        }
    }

    fn write_length(&self, length: u64, dst: &mut BytesMut) {
        match self.order {
            Order::Big => dst.extend_from_slice(&length.to_be_bytes()[8 - self.width..]),
            Order::Little => dst.extend_from_slice(&length.to_le_bytes()[..self.width]),
        }
    }
}

impl Decoder for LengthPrefix {
    type Item = Bytes;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        let Some(prefix) = src.get(..self.width) else {
            return Ok(None);
        };
        let claimed = self.read_length(prefix);
        // The length converts to `usize` only if it is within the limit, which is a `usize`.
        let Some(length) = usize::try_from(claimed).ok().filter(|n| *n <= self.max_len) else {
            return Err(FrameError::TooLong {
                limit: self.limit(),
                claimed,
            });
        };
        if src.len() - self.width < length {
            return Ok(None);
        }
        src.advance(self.width);
        Ok(Some(src.split_to(length).freeze()))
    }

    fn buffer_limit(&self) -> usize {
        self.max_len.saturating_add(self.width)
    }
}

impl<T: AsRef<[u8]>> Encoder<T> for LengthPrefix {
    type Error = FrameError;

    fn encode(&mut self, item: T, dst: &mut BytesMut) -> Result<(), FrameError> {
        let body = item.as_ref();
        let length = body.len() as u64;
        if length > self.limit() {
            return Err(FrameError::too_long_to_send(length, self.limit()));
        }
        dst.reserve(self.width + body.len());
        self.write_length(length, dst);
        dst.extend_from_slice(body);
        Ok(())
    }
}
