//! Receives many datagrams with one system call, `recvmmsg(2)`, in safe Rust.
//!
//! A [`Batch`] is filled from a socket and then emptied datagram by datagram. It is for any socket
//! that keeps the bounds of messages: UDP, Unix datagram.
//!
//! ```
//! use packet_batch::Batch;
//! use std::net::UdpSocket;
//!
//! let server = UdpSocket::bind("127.0.0.1:0")?;
//! let client = UdpSocket::bind("127.0.0.1:0")?;
//! client.send_to(b"one", server.local_addr()?)?;
//! client.send_to(b"two", server.local_addr()?)?;
//!
//! let mut batch = Batch::new(1500);
//! assert_eq!(batch.receive(&server, 32)?, 2);
//! let packet = batch.next().unwrap();
//! assert_eq!(packet.bytes, b"one");
//! assert_eq!(packet.from.unwrap(), client.local_addr()?.into());
//! assert_eq!(batch.next().unwrap().bytes, b"two");
//! assert!(batch.next().is_none());
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Platform
//!
//! Linux.

#![allow(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(not(target_os = "linux"))]
compile_error!("packet-batch is a cover of recvmmsg(2), and needs Linux");

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use rustix::net::addr::SocketAddrStorage;

/// The most that one call receives.
pub const MAX: usize = 32;

/// Datagrams that were received together, and room for them.
pub struct Batch {
    /// Room for [`MAX`] packets, one after the other. The kernel has zeroed it already, and memory
    /// that no datagram has reached is not there yet.
    bytes: Vec<u8>,
    packet_size: usize,
    metas: [Meta; MAX],
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
            received: 0,
            taken: 0,
            expected: MAX,
            emptied: false,
        }
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
    pub fn has_emptied_socket(&self) -> bool {
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
        // With MSG_TRUNC, a message's length is what it was, not what there was room for; recv(2).
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: each of the first `wanted` headers has one piece of memory and room for one name,
        // with their true lengths; all of them are borrowed mutably by this function, are not
        // looked at during the call, and outlive it. A null timeout is allowed.
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
        let Meta { full_len, from } = std::mem::take(&mut self.metas[index]);
        let start = index * self.packet_size;
        let bytes = &self.bytes[start..start + full_len.min(self.packet_size)];
        Some(Packet {
            bytes,
            full_len,
            from,
        })
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("len", &self.len())
            .field("packet_size", &self.packet_size)
            .finish_non_exhaustive()
    }
}

const NAME_LEN: libc::socklen_t = narrow(size_of::<SocketAddrStorage>());

#[expect(clippy::cast_possible_truncation, reason = "no more than 128")]
const fn narrow(small: usize) -> u32 {
    small as u32
}

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
