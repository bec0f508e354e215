//! Detection of a header's end as the header arrives. The first bytes that differ distinguish both
//! versions from each other and from other data.

use super::header::ProxyHeaderError;

/// Maximum length of a version 1 line, with its line end.
const LONGEST_LINE: usize = 107;

/// Maximum length of the addresses and extensions of version 2. According to the specification,
/// headers fit into one segment. The additions of a proxy (names of certificates, an identifier)
/// are shorter than this limit.
const LONGEST_BLOCK: usize = 4096;

pub(super) const LINE: &[u8] = b"PROXY ";
pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Length of the fixed part: signature, version and command, family and protocol, length of the
/// rest.
pub(super) const FIXED: usize = 16;

/// The extent of a header in the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All bytes belong to the header, which has at least this length.
    Partial(usize),
    /// The header has this length. The bytes after it do not belong to the header.
    Whole(usize),
}

/// Finds the end of the header at the beginning of `bytes`.
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

/// Version 1: one line. A single CR or LF does not end the line, and is not allowed in it.
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

/// Version 2: the header contains its length.
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
