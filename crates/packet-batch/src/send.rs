//! Sends datagrams in batches.

#![allow(unsafe_code)]

use std::array;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::net::{SendFlags, SocketAddrAny, sendto};

use crate::cmsg::Sent;
use crate::{MAX, PacketInfo, narrow};

/// A datagram to send.
#[derive(Clone, Copy, Debug)]
pub struct Transmit<'a> {
    bytes: &'a [u8],
    to: &'a SocketAddrAny,
    from: Option<PacketInfo>,
}

impl<'a> Transmit<'a> {
    /// Creates a datagram that is sent from the address that the socket is bound to. If the socket
    /// is bound to the wildcard address, the route decides.
    #[must_use]
    pub fn new(bytes: &'a [u8], to: &'a SocketAddrAny) -> Self {
        let from = None;
        Self { bytes, to, from }
    }

    /// Sets the local address to send from. It must have the family of the socket: an IPv6 socket
    /// takes an IPv4 address as `::ffff:a.b.c.d`.
    #[must_use]
    pub fn from(mut self, local: Option<PacketInfo>) -> Self {
        self.from = local;
        self
    }

    /// Returns the payload.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the address of the receiver.
    #[must_use]
    pub fn to(&self) -> &'a SocketAddrAny {
        self.to
    }

    /// Returns the local address to send from, if one is set.
    #[must_use]
    pub fn local(&self) -> Option<PacketInfo> {
        self.from
    }
}

/// Sends datagrams, at most [`MAX`], with one system call. Returns the number that was sent, which
/// is at least one. Call it again for the rest.
///
/// # Errors
/// Returns the errors of `sendmmsg(2)` for the first datagram. An error of a later datagram is left
/// for the next call. Returns `EINVAL` or `ENETUNREACH` if the source address is not an address of
/// this machine.
///
/// # Panics
/// Panics if `packets` is empty.
pub fn send(
    socket: impl AsFd,
    packets: &[Transmit<'_>],
    flags: SendFlags,
) -> rustix::io::Result<usize> {
    match packets {
        [] => panic!("there is nothing to send"),
        [one] if one.from.is_none() => sendto(socket, one.bytes, flags, one.to).map(|_| 1),
        // Preparing more headers than there are datagrams costs time.
        [_] => send_up_to::<1>(socket, packets, flags),
        _ => send_up_to::<MAX>(socket, packets, flags),
    }
}

fn send_up_to<const MOST: usize>(
    socket: impl AsFd,
    packets: &[Transmit<'_>],
    flags: SendFlags,
) -> rustix::io::Result<usize> {
    let packets = &packets[..packets.len().min(MOST)];
    let mut controls = [Sent::EMPTY; MOST];
    let mut iovecs: [libc::iovec; MOST] = array::from_fn(|n| {
        let bytes = packets.get(n).map_or(&[][..], |packet| packet.bytes);
        libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        }
    });
    // SAFETY: all zeroes is a value of this plain C struct: null pointers and lengths of none.
    let mut headers: [libc::mmsghdr; MOST] = unsafe { std::mem::zeroed() };
    for (((header, iovec), control), packet) in headers
        .iter_mut()
        .zip(&mut iovecs)
        .zip(&mut controls)
        .zip(packets)
    {
        let header = &mut header.msg_hdr;
        header.msg_iov = ptr::from_mut(iovec);
        header.msg_iovlen = 1;
        header.msg_name = packet.to.as_ptr().cast_mut().cast();
        header.msg_namelen = packet.to.addr_len();
        if let Some(local) = packet.from {
            // The type of this field differs between C libraries.
            header.msg_controllen = control.set_source(local) as _;
            header.msg_control = control.0.as_mut_ptr().cast();
        }
    }
    // SAFETY: each of the first headers, as many as there are packets and at most `MOST`, has one
    // buffer, one address, and the bytes of one control message or none, with their true lengths.
    // All of them outlive the call, which only reads them; it writes the sent lengths into the
    // headers.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            narrow(packets.len()),
            flags.bits().cast_signed(),
        )
    };
    match usize::try_from(sent) {
        Ok(sent @ 1..) => Ok(sent),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN)),
    }
}
