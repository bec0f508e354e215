//! A header that has arrived whole: what it says, and what makes it invalid.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;

use crc::{CRC_32_ISCSI, Crc};
use ppp::{v1, v2};

use super::length::{FIXED, LINE, SIGNATURE};
use crate::{Address, UnixAddress};

/// What a trusted proxy has said about a connection; see
/// [`Connection::proxy_header`](crate::Connection::proxy_header).
#[derive(Clone, Debug)]
pub struct ProxyHeader {
    proxy: Address,
    addresses: Option<(Address, Address)>,
    extensions: Box<[u8]>,
}

/// Why a connection of a trusted proxy has no PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyHeaderError {
    /// It begins with something else. Does the proxy send one (`send-proxy-v2`)?
    #[error("it begins with something else")]
    Missing,
    /// It does not follow the specification.
    #[error("it does not follow the specification")]
    Malformed,
    /// It is longer than any that is accepted.
    #[error("it is too long")]
    TooLong,
    /// The connection ended within it.
    #[error("the connection ended within it")]
    CutShort,
    /// It was not complete in [time](crate::ProxyProtocol::timeout).
    #[error("it was not complete in time")]
    TimedOut,
    /// Its checksum is wrong.
    #[error("its checksum is wrong")]
    Checksum,
}

impl ProxyHeaderError {
    /// All of them by numbers: how a forked child tells its parent.
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
    /// The type of an extension: the protocol that TLS has negotiated (ALPN), such as `h2`.
    pub const ALPN: u8 = 0x01;
    /// The type of an extension: the host name that the client asked for (SNI), in UTF-8.
    pub const AUTHORITY: u8 = 0x02;
    /// The type of an extension: a checksum, which was right if it is there.
    pub const CRC32C: u8 = 0x03;
    /// The type of an extension: bytes that identify the connection.
    pub const UNIQUE_ID: u8 = 0x05;
    /// The type of an extension: the client's TLS, with extensions in it; 2.2.6 of the specification.
    pub const SSL: u8 = 0x20;

    /// The proxy's address, as the socket has it.
    #[must_use]
    pub fn proxy(&self) -> &Address {
        &self.proxy
    }

    /// The client's address. `None` if the header has no addresses: the proxy speaks for itself
    /// (`LOCAL`), or of something that has no address for us (`UNKNOWN`, `UNSPEC`).
    #[must_use]
    pub fn client(&self) -> Option<&Address> {
        Some(&self.addresses.as_ref()?.0)
    }

    /// The address that the client connected to.
    #[must_use]
    pub fn destination(&self) -> Option<&Address> {
        Some(&self.addresses.as_ref()?.1)
    }

    /// The extensions (TLVs) of version 2, with their types, in their order.
    pub fn extensions(&self) -> impl Iterator<Item = (u8, &[u8])> {
        extensions(&self.extensions)
    }

    /// The first extension of a type.
    #[must_use]
    pub fn extension(&self, kind: u8) -> Option<&[u8]> {
        let mut all = self.extensions();
        all.find_map(|(its, value)| (its == kind).then_some(value))
    }

    /// Decodes a header of either version that is whole.
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
    // What follows this word is ignored, whatever it is.
    if let Some(b" " | b"\r") = bytes
        .strip_prefix(b"PROXY UNKNOWN")
        .and_then(|rest| rest.get(..1))
    {
        return Ok(None);
    }
    // Numbers are digits: the parsers of the standard library take a sign as well.
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
    // LOCAL: the addresses are to be ignored, even their family, and the parser does not.
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

/// The extensions of a header without addresses. What stands in their place is anybody's guess, and
/// no reason to refuse the connection.
fn lenient(bytes: &[u8]) -> Result<&[u8], ProxyHeaderError> {
    let addresses = match bytes.get(FIXED - 3).map(|family| family >> 4) {
        Some(1) => 12,
        Some(2) => 36,
        Some(3) => 216,
        _ => 0,
    };
    Ok(checked(bytes, FIXED + addresses)?.unwrap_or_default())
}

/// The extensions from here on, with their checksum verified if there is one; `None` if these are
/// none.
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
        // Of the whole header, with zeros in its own place.
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

/// Type, length, value; up to the first that is not whole.
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

/// As much of `sun_path` as there is: unix(7).
fn unix(path: &[u8; 108]) -> Address {
    let end = |bytes: &[u8]| {
        bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len())
    };
    Address::Unix(match path {
        // How long an abstract name is, is not said; it may have NULs within, but none is padding.
        [0, name @ ..] => match name.iter().rposition(|byte| *byte != 0) {
            Some(last) => UnixAddress::Abstract(name[..=last].to_vec()),
            None => UnixAddress::Unnamed,
        },
        path => UnixAddress::Path(OsStr::from_bytes(&path[..end(path)]).into()),
    })
}
