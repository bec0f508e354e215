//! Reader of a header that reads no byte after the header.

use std::io;

use super::header::{ProxyHeader, ProxyHeaderError};
use super::length::{Extent, extent};
use crate::Address;
use crate::socket::Socket;

/// Initial buffer size: longer than any header without extensions.
const USUAL: usize = 256;

/// The reason why no header was read.
pub(super) enum ReadError {
    Header(ProxyHeaderError),
    /// The peer disconnected without sending a byte, or the server cancelled the connection.
    Disconnected,
}

impl From<ProxyHeaderError> for ReadError {
    fn from(error: ProxyHeaderError) -> Self {
        Self::Header(error)
    }
}

/// A header that may have arrived in part.
#[derive(Default)]
pub(super) struct HeaderReader {
    bytes: Vec<u8>,
    received: usize,
}

impl HeaderReader {
    pub(super) fn has_begun(&self) -> bool {
        self.received > 0
    }

    /// Continues to read the header of `proxy`. Returns `None` if more bytes must arrive.
    ///
    /// Peeks at the received bytes first, because the length of a line is known only when its end
    /// has arrived. Then receives the bytes that belong to the header; the other bytes stay in the
    /// kernel.
    pub(super) fn advance(
        &mut self,
        socket: &Socket,
        proxy: &Address,
    ) -> Result<Option<ProxyHeader>, ReadError> {
        self.bytes.resize(self.bytes.len().max(USUAL), 0);
        loop {
            let seen = match socket.try_peek(&mut self.bytes[self.received..]) {
                Ok(0) if self.received == 0 => return Err(ReadError::Disconnected),
                Ok(0) => return Err(ProxyHeaderError::CutShort.into()),
                Ok(n) => self.received + n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(ReadError::Disconnected),
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
                    Err(_) => return Err(ReadError::Disconnected),
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
