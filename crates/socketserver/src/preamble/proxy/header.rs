//! The content of a complete PROXY header, and its validation.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;

use crc::{CRC_32_ISCSI, Crc};
use ppp::{v1, v2};

use super::length::{FIXED, LINE, SIGNATURE};
use crate::{Address, UnixAddress};

/// The PROXY header of a trusted proxy; see
/// [`Connection::proxy_header`](crate::Connection::proxy_header).
#[derive(Clone, Debug)]
pub struct ProxyHeader {
    proxy: Address,
    addresses: Option<(Address, Address)>,
    extensions: Box<[u8]>,
}

/// The reason why a connection of a trusted proxy has no valid PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyHeaderError {
    /// The connection begins with other bytes. Check that the proxy sends a header
    /// (`send-proxy-v2`).
    #[error("it begins with something else")]
    Missing,
    /// The header does not follow the specification.
    #[error("it does not follow the specification")]
    Malformed,
    /// The header is longer than the limit.
    #[error("it is too long")]
    TooLong,
    /// The connection ended within the header.
    #[error("the connection ended within it")]
    CutShort,
    /// The header was not complete in [time](crate::ProxyProtocol::timeout).
    #[error("it was not complete in time")]
    TimedOut,
    /// The checksum is wrong.
    #[error("its checksum is wrong")]
    Checksum,
}

impl ProxyHeaderError {
    /// Returns the error with this number. A forked child reports the number to its parent.
    pub(crate) fn numbered(number: i32) -> Option<Self> {
        Some(match number {
            0 => Self::Missing,
            1 => Self::Malformed,
            2 => Self::TooLong,
            3 => Self::CutShort,
            4 => Self::TimedOut,
            5 => Self::Checksum,
            _ => return None,
        })
    }
}

impl ProxyHeader {
    /// Extension type: the protocol that TLS has negotiated (ALPN), such as `h2`.
    pub const ALPN: u8 = 0x01;
    /// Extension type: the host name that the client requested (SNI), in UTF-8.
    pub const AUTHORITY: u8 = 0x02;
    /// Extension type: a checksum, verified if present.
    pub const CRC32C: u8 = 0x03;
    /// Extension type: an identifier of the connection.
    pub const UNIQUE_ID: u8 = 0x05;
    /// Extension type: the client's TLS parameters, with nested extensions; 2.2.6 of the
    /// specification.
    pub const SSL: u8 = 0x20;

    /// Returns the address of the proxy's end of the socket.
    #[must_use]
    pub fn proxy(&self) -> &Address {
        &self.proxy
    }

    /// Returns the client's address. Returns `None` if the header has no addresses: the connection
    /// is the proxy's own (`LOCAL`), or its addresses are not known (`UNKNOWN`, `UNSPEC`).
    #[must_use]
    pub fn client(&self) -> Option<&Address> {
        Some(&self.addresses.as_ref()?.0)
    }

    /// Returns the address that the client connected to.
    #[must_use]
    pub fn destination(&self) -> Option<&Address> {
        Some(&self.addresses.as_ref()?.1)
    }

    /// Returns the extensions (TLVs) of version 2, with their types, in their order.
    pub fn extensions(&self) -> impl Iterator<Item = (u8, &[u8])> {
        extensions(&self.extensions)
    }

    /// Returns the value of the first extension of a type.
    #[must_use]
    pub fn extension(&self, kind: u8) -> Option<&[u8]> {
        let mut all = self.extensions();
        all.find_map(|(its, value)| (its == kind).then_some(value))
    }

    /// Decodes a complete header of version 1 or 2.
    pub(super) fn decode(bytes: &[u8], proxy: &Address) -> Result<Self, ProxyHeaderError> {
        let (addresses, extensions) = if bytes.starts_with(SIGNATURE) {
            block(bytes)?
        } else {
            (line(bytes)?, &[][..])
        };
        Ok(Self {
            proxy: proxy.clone(),
            addresses,
            extensions: extensions.into(),
        })
    }
}

type Addresses = Option<(Address, Address)>;

fn line(bytes: &[u8]) -> Result<Addresses, ProxyHeaderError> {
    // All text after `UNKNOWN` is ignored.
    if let Some(b" " | b"\r") = bytes
        .strip_prefix(b"PROXY UNKNOWN")
        .and_then(|rest| rest.get(..1))
    {
        return Ok(None);
    }
    // Numbers consist of digits. The parsers of the standard library also accept a sign.
    if !bytes.starts_with(LINE) || bytes.contains(&b'+') {
        return Err(ProxyHeaderError::Malformed);
    }
    let header = v1::Header::try_from(bytes).map_err(|_| ProxyHeaderError::Malformed)?;
    Ok(match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(pair) => Some((
            inet(pair.source_address, pair.source_port),
            inet(pair.destination_address, pair.destination_port),
        )),
        v1::Addresses::Tcp6(pair) => Some((
            inet(pair.source_address, pair.source_port),
            inet(pair.destination_address, pair.destination_port),
        )),
    })
}

fn block(bytes: &[u8]) -> Result<(Addresses, &[u8]), ProxyHeaderError> {
    // LOCAL: the specification ignores the addresses and even their family; the parser does not.
    if bytes.get(SIGNATURE.len()) == Some(&0x20) {
        return Ok((None, lenient(bytes)?));
    }
    let header = v2::Header::try_from(bytes).map_err(|_| ProxyHeaderError::Malformed)?;
    let addresses = match header.addresses {
        _ if header.protocol == v2::Protocol::Unspecified => None,
        v2::Addresses::Unspecified => None,
        v2::Addresses::IPv4(pair) => Some((
            inet(pair.source_address, pair.source_port),
            inet(pair.destination_address, pair.destination_port),
        )),
        v2::Addresses::IPv6(pair) => Some((
            inet(pair.source_address, pair.source_port),
            inet(pair.destination_address, pair.destination_port),
        )),
        v2::Addresses::Unix(pair) => Some((unix(&pair.source), unix(&pair.destination))),
    };
    if addresses.is_none() {
        return Ok((None, lenient(bytes)?));
    }
    let begin = FIXED + header.addresses.len();
    Ok((
        addresses,
        checked(bytes, begin)?.ok_or(ProxyHeaderError::Malformed)?,
    ))
}

/// Returns the extensions of a header without addresses. The bytes in place of the addresses are
/// undefined, and are no reason to reject the connection.
fn lenient(bytes: &[u8]) -> Result<&[u8], ProxyHeaderError> {
    let addresses = match bytes.get(FIXED - 3).map(|family| family >> 4) {
        Some(1) => 12,
        Some(2) => 36,
        Some(3) => 216,
        _ => 0,
    };
    Ok(checked(bytes, FIXED + addresses)?.unwrap_or_default())
}

/// Returns the extensions from `begin` on, with a verified checksum if present. Returns `None` if
/// the bytes are not extensions.
fn checked(header: &[u8], begin: usize) -> Result<Option<&[u8]>, ProxyHeaderError> {
    const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    let Some(bytes) = header.get(begin..) else {
        return Ok(None);
    };
    let mut at = begin;
    let mut sums = Vec::new();
    for (kind, value) in extensions(bytes) {
        at += 3;
        if kind == ProxyHeader::CRC32C {
            sums.push((at, value));
        }
        at += value.len();
    }
    if at != header.len() {
        return Ok(None);
    }
    for (at, sum) in sums {
        // The checksum covers the whole header, with zeros in place of the checksum.
        let mut digest = CRC32C.digest();
        digest.update(&header[..at]);
        digest.update(&[0; 4]);
        digest.update(header.get(at + 4..).unwrap_or_default());
        if sum != digest.finalize().to_be_bytes() {
            return Err(ProxyHeaderError::Checksum);
        }
    }
    Ok(Some(bytes))
}

/// Iterates over type, length and value, up to the first incomplete extension.
fn extensions(mut rest: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[kind, high, low], after) = rest.split_first_chunk()?;
        let length = u16::from_be_bytes([high, low]);
        let (value, after) = after.split_at_checked(length.into())?;
        rest = after;
        Some((kind, value))
    })
}

fn inet(ip: impl Into<IpAddr>, port: u16) -> Address {
    Address::Inet(SocketAddr::new(ip.into(), port))
}

/// Converts `sun_path` up to its end: unix(7).
fn unix(path: &[u8; 108]) -> Address {
    let end = |bytes: &[u8]| {
        bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len())
    };
    Address::Unix(match path {
        // The length of an abstract name is not transmitted. The name may contain NULs; trailing
        // NULs are padding.
        [0, name @ ..] => match name.iter().rposition(|byte| *byte != 0) {
            Some(last) => UnixAddress::Abstract(name[..=last].to_vec()),
            None => UnixAddress::Unnamed,
        },
        path => UnixAddress::Path(OsStr::from_bytes(&path[..end(path)]).into()),
    })
}
