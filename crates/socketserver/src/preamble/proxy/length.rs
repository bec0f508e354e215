//! Where a header ends, found out as it arrives. Both versions are told apart from each other, and
//! from everything else, by the first bytes that differ.

use super::header::ProxyHeaderError;

/// The longest line of version 1, with its end.
const LONGEST_LINE: usize = 107;

/// What the addresses and extensions of version 2 may have. The specification has headers fit into
/// one segment; what a proxy may add (names of certificates, an identifier) is less than this.
const LONGEST_BLOCK: usize = 4096;

pub(super) const LINE: &[u8] = b"PROXY ";
pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The signature, version and command, family and protocol, and the length of what follows.
pub(super) const FIXED: usize = 16;

/// How far a header has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All bytes belong to a header that has at least so many.
    Partial(usize),
    /// So many bytes are a header. What follows it is not.
    Whole(usize),
}

/// Finds the end of the header that these bytes begin with.
pub(super) fn extent(bytes: &[u8]) -> Result<Extent, ProxyHeaderError> {
    let begins_with = |fixed: &[u8]| bytes.iter().zip(fixed).all(|(byte, fixed)| byte == fixed);
    if begins_with(SIGNATURE) {
        block(bytes)
    } else if begins_with(LINE) {
        line(bytes)
    } else {
        Err(ProxyHeaderError::Missing)
    }
}

/// Version 1: one line. A CR or an LF of its own does not end it, and is not allowed in it.
fn line(bytes: &[u8]) -> Result<Extent, ProxyHeaderError> {
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = window.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if window.len() < LONGEST_LINE {
            Ok(Extent::Partial(bytes.len() + 1))
        } else {
            Err(ProxyHeaderError::TooLong)
        };
    };
    match &window[end..] {
        [b'\r', b'\n', ..] => Ok(Extent::Whole(end + 2)),
        [b'\r'] if window.len() < LONGEST_LINE => Ok(Extent::Partial(end + 2)),
        [b'\r'] => Err(ProxyHeaderError::TooLong),
        _ => Err(ProxyHeaderError::Malformed),
    }
}

/// Version 2: its length is in it.
fn block(bytes: &[u8]) -> Result<Extent, ProxyHeaderError> {
    match bytes.get(SIGNATURE.len()) {
        Some(0x20 | 0x21) | None => {}
        Some(_) => return Err(ProxyHeaderError::Malformed),
    }
    let Some(&[high, low]) = bytes.get(FIXED - 2..FIXED) else {
        return Ok(Extent::Partial(FIXED));
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_BLOCK {
        return Err(ProxyHeaderError::TooLong);
    }
    let whole = FIXED + length;
    Ok(if bytes.len() < whole {
        Extent::Partial(whole)
    } else {
        Extent::Whole(whole)
    })
}
