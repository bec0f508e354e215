//! Receives datagrams in batches.

#![allow(unsafe_code)]

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use rustix::net::addr::SocketAddrStorage;

use crate::cmsg::{self, Received};
use crate::{MAX, PacketInfo, narrow};

/// A set of datagrams that were received together, with the buffers for them.
pub struct Batch {
    /// Buffers for [`MAX`] packets, one after the other. The kernel provides them zeroed, and
    /// memory that no datagram has reached is not allocated.
    bytes: Vec<u8>,
    packet_size: usize,
    metas: [Meta; MAX],
    /// Buffers for the control messages of each datagram; empty if they are not wanted.
    controls: Vec<Received>,
    drops: Drops,
    received: usize,
    taken: usize,
    /// The number of buffers to prepare in the next call. Preparing more than the number of
    /// datagrams that arrive costs time.
    expected: usize,
    socket_empty: bool,
}

/// Metadata of a received datagram.
#[derive(Clone, Default)]
struct Meta {
    full_len: usize,
    from: Option<SocketAddrAny>,
    local: Option<PacketInfo>,
}

/// One datagram of a [`Batch`].
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    /// The payload, truncated to the size of the buffer.
    pub bytes: &'a [u8],
    /// The length of the payload on the wire, in bytes.
    pub full_len: usize,
    /// The address of the sender; `None` for a Unix socket without a name.
    pub from: Option<SocketAddrAny>,
    /// The local address that the datagram was sent to; for a broadcast, the local address that a
    /// reply comes from. `None` if the report is not [enabled](crate::set_recv_pktinfo) or there is
    /// no such address.
    pub local: Option<PacketInfo>,
}

impl Batch {
    /// Creates a batch for datagrams of up to `packet_size` bytes; longer ones are truncated.
    /// Memory is allocated when it is first used.
    #[must_use]
    pub fn new(packet_size: usize) -> Self {
        Self {
            bytes: vec![0; packet_size.max(1) * MAX],
            packet_size: packet_size.max(1),
            metas: Default::default(),
            controls: Vec::new(),
            drops: Drops::default(),
            received: 0,
            taken: 0,
            expected: MAX,
            socket_empty: false,
        }
    }

    /// Also receives the metadata that is [enabled](crate::set_recv_drop_count) on the socket. File
    /// descriptors from a Unix peer are closed at once.
    #[must_use]
    pub fn with_packet_info(mut self) -> Self {
        self.controls = vec![Received::EMPTY; MAX];
        self
    }

    /// Returns the number of datagrams that the kernel had dropped when the last received datagram
    /// arrived, if the count is [enabled](crate::set_recv_drop_count). Later drops are reported
    /// with the next datagram.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.total
    }

    /// Returns the number of datagrams that were received and not taken yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.received - self.taken
    }

    /// Returns true if all datagrams were taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns true if the last call received fewer datagrams than it had buffers for. The socket
    /// was then empty at that moment, or has an error that the next call reports.
    #[must_use]
    pub fn is_socket_empty(&self) -> bool {
        self.socket_empty
    }

    /// Receives up to `limit` datagrams, at most [`MAX`], without waiting. Returns their number,
    /// which is at least one. More datagrams may be left in the socket.
    ///
    /// # Errors
    /// Returns `EAGAIN` if no datagram has arrived, and the errors of `recvmmsg(2)`. An error after
    /// the first datagram is left for the next call.
    ///
    /// # Panics
    /// Panics if the batch still holds datagrams, because they would be lost.
    pub fn receive(&mut self, socket: impl AsFd, limit: usize) -> rustix::io::Result<usize> {
        assert!(
            self.is_empty(),
            "take all datagrams out of the batch before receiving more"
        );
        let wanted = self.expected.min(limit).clamp(1, MAX);
        let mut names = [const { MaybeUninit::<SocketAddrStorage>::uninit() }; MAX];
        let mut iovecs = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX];
        // SAFETY: all zeroes is a value of this plain C struct: null pointers and lengths of none.
        let mut headers: [libc::mmsghdr; MAX] = unsafe { std::mem::zeroed() };
        let buffers = self.bytes.chunks_exact_mut(self.packet_size);
        for (((header, iovec), name), buffer) in headers
            .iter_mut()
            .zip(&mut iovecs)
            .zip(&mut names)
            .zip(buffers)
            .take(wanted)
        {
            let iovec = iovec.write(libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            });
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = NAME_LEN;
        }
        for (header, control) in headers.iter_mut().zip(&mut self.controls).take(wanted) {
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            // The type of this field differs between C libraries.
            header.msg_hdr.msg_controllen = control.0.len() as _;
        }
        // With MSG_TRUNC, the reported length is that of the message and not that of the buffer;
        // recv(2).
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: each of the first `wanted` headers has one buffer, space for one name, and space
        // for control messages or none, with their true lengths; this function borrows all of them
        // mutably, does not access them during the call, and they outlive it. A null timeout is
        // allowed.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                narrow(wanted),
                flags,
                ptr::null_mut(),
            )
        };
        let Ok(received @ 1..) = usize::try_from(received) else {
            return Err(
                Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN)
            );
        };
        for ((meta, header), name) in self
            .metas
            .iter_mut()
            .zip(&headers)
            .zip(&names)
            .take(received)
        {
            meta.full_len = header.msg_len as usize;
            // SAFETY: the kernel has written a name of this length for each message received.
            meta.from = unsafe { named(name, header.msg_hdr.msg_namelen) };
            meta.local = None;
        }
        for ((meta, header), control) in self
            .metas
            .iter_mut()
            .zip(&headers)
            .zip(&self.controls)
            .take(received)
        {
            // The kernel has stored the number of bytes that it wrote, at most the space that there
            // was. The type of this field differs between C libraries.
            let written: usize = header.msg_hdr.msg_controllen as _;
            if written > 0 {
                let reported = cmsg::read(&control.0[..written.min(control.0.len())]);
                meta.local = reported.local;
                reported
                    .drops
                    .into_iter()
                    .for_each(|count| self.drops.count(count));
            }
        }
        self.socket_empty = received < wanted;
        self.expected = if self.socket_empty {
            received + 1
        } else {
            (2 * wanted).min(MAX)
        };
        (self.received, self.taken) = (received, 0);
        Ok(received)
    }

    /// Takes the next datagram.
    #[expect(
        clippy::should_implement_trait,
        reason = "the packet borrows from the batch"
    )]
    pub fn next(&mut self) -> Option<Packet<'_>> {
        let index = self.taken;
        if index == self.received {
            return None;
        }
        self.taken += 1;
        let Meta {
            full_len,
            from,
            local,
        } = std::mem::take(&mut self.metas[index]);
        let start = index * self.packet_size;
        let bytes = &self.bytes[start..start + full_len.min(self.packet_size)];
        Some(Packet {
            bytes,
            full_len,
            from,
            local,
        })
    }
}

/// Extends the 32-bit counter of the kernel, which wraps around, to 64 bits.
#[derive(Default)]
struct Drops {
    total: u64,
    last: u32,
}

impl Drops {
    fn count(&mut self, reported: u32) {
        let more = reported.wrapping_sub(self.last);
        // The counts of two processors may arrive in the wrong order.
        if more <= u32::MAX / 2 {
            self.total += u64::from(more);
            self.last = reported;
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("len", &self.len())
            .field("packet_size", &self.packet_size)
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

const NAME_LEN: libc::socklen_t = narrow(size_of::<SocketAddrStorage>());

/// Returns the address that the kernel has written; `None` if the sender has no name.
///
/// # Safety
/// `name` must hold an address of `len` bytes, if `len` is not zero.
unsafe fn named(
    name: &MaybeUninit<SocketAddrStorage>,
    len: libc::socklen_t,
) -> Option<SocketAddrAny> {
    if (len as usize) < size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: guaranteed by the caller.
    let address = unsafe { SocketAddrAny::read(name.as_ptr(), len) };
    (address.address_family() != rustix::net::AddressFamily::UNSPEC).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_counted_beyond_32_bits() {
        let mut drops = Drops::default();
        for (reported, total) in [
            (3, 3),
            (3, 3),
            (2, 3),
            (1 << 30, 1 << 30),
            (1 << 31, 1 << 31),
            (3 << 30, 3 << 30),
            (u32::MAX, u64::from(u32::MAX)),
            (4, (1 << 32) + 4),
        ] {
            drops.count(reported);
            assert_eq!(drops.total, total);
        }
    }
}
