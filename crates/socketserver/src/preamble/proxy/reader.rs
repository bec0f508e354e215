//! Reading a header from a connection, and not a byte of what follows it.

use std::io;

use super::header::{ProxyHeader, ProxyHeaderError};
use super::length::{Extent, extent};
use crate::Address;
use crate::socket::Socket;

/// More than any header that has no extensions takes.
const USUAL: usize = 256;

/// Why there is no header.
pub(super) enum Fault {
    Bad(ProxyHeaderError),
    /// The connection is gone: its peer left without a word, or it was cut from this side.
    Gone,
}

impl From<ProxyHeaderError> for Fault {
    fn from(bad: ProxyHeaderError) -> Self {
        Self::Bad(bad)
    }
}

/// A header that may have arrived in part.
#[derive(Default)]
pub(super) struct Reading {
    bytes: Vec<u8>,
    received: usize,
}

impl Reading {
    pub(super) fn has_begun(&self) -> bool {
        self.received > 0
    }

    /// Reads on in the header that `proxy` has to begin with; `None` if more of it has to come.
    ///
    /// What has arrived is looked at first: where a line ends is only known once its end is there.
    /// What turns out to be a part of the header is received then, and the rest stays in the kernel.
    pub(super) fn advance(
        &mut self,
        socket: &Socket,
        proxy: &Address,
    ) -> Result<Option<ProxyHeader>, Fault> {
        self.bytes.resize(self.bytes.len().max(USUAL), 0);
        loop {
            let seen = match socket.try_peek(&mut self.bytes[self.received..]) {
                Ok(0) if self.received == 0 => return Err(Fault::Gone),
                Ok(0) => return Err(ProxyHeaderError::CutShort.into()),
                Ok(n) => self.received + n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(Fault::Gone),
            };
            let extent = extent(&self.bytes[..seen])?;
            let end = match extent {
                Extent::Whole(length) => length,
                Extent::Partial(_) => seen,
            };
            while self.received < end {
                match socket.try_recv_ciphertext(&mut self.bytes[self.received..end]) {
                    Ok(0) => return Err(ProxyHeaderError::CutShort.into()),
                    Ok(n) => self.received += n,
                    Err(_) => return Err(Fault::Gone),
                }
            }
            match extent {
                Extent::Whole(length) => {
                    let header = ProxyHeader::decode(&self.bytes[..length], proxy)?;
                    return Ok(Some(header));
                }
                Extent::Partial(least) if least > self.bytes.len() => self.bytes.resize(least, 0),
                Extent::Partial(_) => {}
            }
        }
    }
}
