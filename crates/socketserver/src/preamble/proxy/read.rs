//! Reading a header from a connection, and not a byte of what follows it.

use std::io;
use std::time::Instant;

use super::extent::{Extent, extent};
use super::header::{BadProxyHeader, ProxyHeader};
use crate::Address;
use crate::socket::Socket;
use crate::timeouts::Limits;

/// More than any header that has no extensions takes.
const USUAL: usize = 256;

/// Why there is no header.
pub(super) enum Fault {
    Bad(BadProxyHeader),
    /// The connection is gone: its peer left without a word, or it was cut from this side.
    Gone,
}

impl From<BadProxyHeader> for Fault {
    fn from(bad: BadProxyHeader) -> Self {
        Self::Bad(bad)
    }
}

/// Reads the header that `proxy` has to begin with.
///
/// What has arrived is looked at first: where a line ends is only known once its end is there. What
/// turns out to be a part of the header is received then, and the rest stays in the kernel.
pub(super) fn header(
    socket: &Socket,
    proxy: &Address,
    deadline: Option<Instant>,
) -> Result<ProxyHeader, Fault> {
    let limits = Limits {
        deadline,
        ..Limits::default()
    };
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut if !socket.is_lost() => Fault::Bad(BadProxyHeader::TimedOut),
        _ => Fault::Gone,
    };
    let mut bytes = vec![0; USUAL];
    let mut received = 0;
    loop {
        let seen = match socket.peek(&mut bytes[received..], limits) {
            Ok(0) if received == 0 => return Err(Fault::Gone),
            Ok(0) => return Err(BadProxyHeader::CutShort.into()),
            Ok(n) => received + n,
            Err(error) => return Err(failed(error)),
        };
        let extent = extent(&bytes[..seen])?;
        let end = match extent {
            Extent::Whole(length) => length,
            Extent::Partial(_) => seen,
        };
        while received < end {
            match socket.recv(&mut bytes[received..end], limits) {
                Ok(0) => return Err(BadProxyHeader::CutShort.into()),
                Ok(n) => received += n,
                Err(error) => return Err(failed(error)),
            }
        }
        match extent {
            Extent::Whole(length) => return Ok(ProxyHeader::decode(&bytes[..length], proxy)?),
            Extent::Partial(least) if least > bytes.len() => bytes.resize(least, 0),
            Extent::Partial(_) => {}
        }
    }
}
