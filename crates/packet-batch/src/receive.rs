//! Receiving.

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

/// Datagrams that were received together, and room for them.
pub struct Batch {
    /// Room for [`MAX`] packets, one after the other. The kernel has zeroed it already, and memory
    /// that no datagram has reached is not there yet.
    bytes: Vec<u8>,
    packet_size: usize,
    metas: [Meta; MAX],
    /// Room for what is told beside each of them; none, if nobody wants to know.
    controls: Vec<Received>,
    drops: Drops,
    received: usize,
    taken: usize,
    /// How many to have room for in the next call: preparing for more than come is a waste.
    expected: usize,
    emptied: bool,
}

/// What is known of a received datagram.
#[derive(Clone, Default)]
struct Meta {
    full_len: usize,
    from: Option<SocketAddrAny>,
    local: Option<PacketInfo>,
}

/// One datagram of a [`Batch`].
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    /// What it carries, or as much of it as there was room for.
    pub bytes: &'a [u8],
    /// How long it was on the wire, in bytes.
    pub full_len: usize,
    /// Who sent it; `None` for a Unix socket without a name.
    pub from: Option<SocketAddrAny>,
    /// The address of this machine that it was sent to, or that an answer to a broadcast comes from;
    /// if it was [asked for](crate::set_recv_pktinfo), and there is one.
    pub local: Option<PacketInfo>,
}

impl Batch {
    /// Room for datagrams of up to `packet_size` bytes; what is longer will be cut. Memory is used
    /// once it is needed.
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
            emptied: false,
        }
    }

    /// Also takes what the kernel tells beside each datagram, if the socket was
    /// [asked](crate::set_recv_drop_count) to. Descriptors that a Unix peer sends along are closed at once.
    #[must_use]
    pub fn with_packet_info(mut self) -> Self {
        self.controls = vec![Received::EMPTY; MAX];
        self
    }

    /// How many datagrams the kernel had dropped when the last one that was received came in, if the
    /// socket was [asked](crate::set_recv_drop_count). Those that were dropped after it are known with the
    /// next one.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.total
    }

    /// How many datagrams were received and not taken out yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.received - self.taken
    }

    /// Whether all were taken out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the last call found fewer than it had room for: then nothing more was there at that
    /// moment, or an error that the next call reports.
    #[must_use]
    pub fn is_socket_empty(&self) -> bool {
        self.emptied
    }

    /// Receives up to `limit` datagrams, but no more than [`MAX`], without waiting for any. Returns
    /// how many, which is at least one. It may be fewer than there are.
    ///
    /// # Errors
    /// `EAGAIN`, if none has arrived; others as `recvmmsg(2)` has them. An error that comes after
    /// the first datagram is left to the next call.
    ///
    /// # Panics
    /// If the batch still holds datagrams: they would be lost.
    pub fn receive(&mut self, socket: impl AsFd, limit: usize) -> rustix::io::Result<usize> {
        assert!(
            self.is_empty(),
            "take all datagrams out before receiving more"
        );
        let wanted = self.expected.min(limit).clamp(1, MAX);
        let mut names = [const { MaybeUninit::<SocketAddrStorage>::uninit() }; MAX];
        let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX];
        // SAFETY: all zeroes is a value of this plain C struct: null pointers and lengths of none.
        let mut headers: [libc::mmsghdr; MAX] = unsafe { std::mem::zeroed() };
        let rooms = self.bytes.chunks_exact_mut(self.packet_size);
        for (((header, piece), name), room) in headers
            .iter_mut()
            .zip(&mut pieces)
            .zip(&mut names)
            .zip(rooms)
            .take(wanted)
        {
            let piece = piece.write(libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: room.len(),
            });
            header.msg_hdr.msg_iov = piece;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = NAME_LEN;
        }
        for (header, control) in headers.iter_mut().zip(&mut self.controls).take(wanted) {
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            // Its type is another one in other C libraries.
            header.msg_hdr.msg_controllen = control.0.len() as _;
        }
        // With MSG_TRUNC, a message's length is what it was, not what there was room for; recv(2).
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: each of the first `wanted` headers has one piece of memory, room for one name, and
        // room for control messages or none, with their true lengths; all of them are borrowed
        // mutably by this function, are not looked at during the call, and outlive it. A null
        // timeout is allowed.
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
            // The kernel has put there how much it wrote, which is no more than there was room for.
            // Its type is another one in other C libraries.
            let written: usize = header.msg_hdr.msg_controllen as _;
            if written > 0 {
                let told = cmsg::read(&control.0[..written.min(control.0.len())]);
                meta.local = told.local;
                told.drops
                    .into_iter()
                    .for_each(|count| self.drops.count(count));
            }
        }
        self.emptied = received < wanted;
        self.expected = if self.emptied {
            received + 1
        } else {
            (2 * wanted).min(MAX)
        };
        (self.received, self.taken) = (received, 0);
        Ok(received)
    }

    /// Takes the next datagram out.
    #[expect(
        clippy::should_implement_trait,
        reason = "what it returns borrows from the batch"
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

/// Counts further than the kernel does, whose counter has 32 bits and begins anew.
#[derive(Default)]
struct Drops {
    total: u64,
    last: u32,
}

impl Drops {
    fn count(&mut self, told: u32) {
        let more = told.wrapping_sub(self.last);
        // Two processors may be seen one after the other in the wrong order.
        if more <= u32::MAX / 2 {
            self.total += u64::from(more);
            self.last = told;
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

/// The address that the kernel has written; none, if the sender has no name.
///
/// # Safety
/// `name` holds an address of `len` bytes, if that is more than none.
unsafe fn named(
    name: &MaybeUninit<SocketAddrStorage>,
    len: libc::socklen_t,
) -> Option<SocketAddrAny> {
    if (len as usize) < size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: the caller vouches for it.
    let address = unsafe { SocketAddrAny::read(name.as_ptr(), len) };
    (address.address_family() != rustix::net::AddressFamily::UNSPEC).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_counted_beyond_the_kernels_counter() {
        let mut drops = Drops::default();
        for (told, total) in [
            (3, 3),
            (3, 3),
            (2, 3),
            (1 << 30, 1 << 30),
            (1 << 31, 1 << 31),
            (3 << 30, 3 << 30),
            (u32::MAX, u64::from(u32::MAX)),
            (4, (1 << 32) + 4),
        ] {
            drops.count(told);
            assert_eq!(drops.total, total);
        }
    }
}
