//! Control messages: metadata of received datagrams, and the source address of sent ones. They are
//! read and written in the layout of `cmsg(3)`, without pointers into them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::fd::{FromRawFd, OwnedFd};

/// A local address, as the source or the destination of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PacketInfo {
    /// The address. An IPv6 socket that accepts IPv4 as well reports the address of an IPv4
    /// datagram as `::ffff:a.b.c.d`.
    pub ip: IpAddr,
    /// The interface of a link-local IPv6 address. 0 for every other address, so that the routing
    /// table decides.
    pub interface: u32,
}

/// The control messages of one datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ControlMessages {
    /// The local address that it was sent to.
    pub(crate) local: Option<PacketInfo>,
    /// The number of datagrams that the kernel had dropped when this one was queued. `None` while
    /// there are none.
    pub(crate) drops: Option<u32>,
}

/// A buffer for the control messages of one datagram, aligned as `cmsg(3)` requires.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control<const SIZE: usize>(pub(crate) [u8; SIZE]);

/// The buffer for received messages. The two messages that this crate enables take 64 bytes. The
/// owner of the socket may have enabled others, such as timestamps.
pub(crate) type Received = Control<128>;

/// The buffer for the one message that is sent.
pub(crate) type Sent = Control<40>;

impl<const SIZE: usize> Control<SIZE> {
    pub(crate) const EMPTY: Self = Self([0; SIZE]);

    /// Writes the source address of a datagram. Returns the number of bytes used.
    pub(crate) fn set_source(&mut self, local: PacketInfo) -> usize {
        match local.ip {
            IpAddr::V4(ip) => {
                let mut info = [0; 12];
                info[..4].copy_from_slice(&local.interface.to_ne_bytes());
                info[4..8].copy_from_slice(&ip.octets());
                self.write(libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
            }
            IpAddr::V6(ip) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                info[16..].copy_from_slice(&local.interface.to_ne_bytes());
                self.write(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
            }
        }
    }

    fn write(&mut self, level: i32, kind: i32, data: &[u8]) -> usize {
        let len = HEADER + data.len();
        self.0[..WORD].copy_from_slice(&len.to_ne_bytes());
        self.0[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        self.0[WORD + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        self.0[HEADER..len].copy_from_slice(data);
        aligned(len)
    }
}

/// Parses the control messages of one datagram.
pub(crate) fn read(mut bytes: &[u8]) -> ControlMessages {
    let mut messages = ControlMessages::default();
    while let Some((level, kind, data, rest)) = next(bytes) {
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => messages.drops = word(data, 0),
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => messages.local = ipv4(data).or(messages.local),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                messages.local = ipv6(data).or(messages.local);
            }
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => close(data),
            _ => {}
        }
        bytes = rest;
    }
    messages
}

/// The size of the kernel's `__kernel_size_t`. A header consists of one, and two `int`.
const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 8;

/// Rounds up as `CMSG_ALIGN` does.
const fn aligned(len: usize) -> usize {
    (len + WORD - 1) & !(WORD - 1)
}

/// Returns the level, the type and the data of the first message, and the bytes after it. Returns
/// `None` for a truncated message.
fn next(bytes: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    let len = usize::from_ne_bytes(*bytes.first_chunk()?);
    let data = bytes.get(HEADER..len)?;
    let int = |at: usize| Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let rest = bytes.get(aligned(len)..).unwrap_or_default();
    Some((int(WORD)?, int(WORD + 4)?, data, rest))
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

/// Reads `struct in_pktinfo`, `ip(7)`: the interface, the local address, and the destination in the
/// header. A reply comes from the second, also if the third is a broadcast address.
fn ipv4(data: &[u8]) -> Option<PacketInfo> {
    let ip = Ipv4Addr::from(*data.get(4..)?.first_chunk()?);
    (!ip.is_unspecified()).then_some(PacketInfo {
        ip: ip.into(),
        interface: 0,
    })
}

/// Reads `struct in6_pktinfo`, `ipv6(7)`: the destination in the header, and the interface. The
/// destination of a multicast datagram is not a local address.
fn ipv6(data: &[u8]) -> Option<PacketInfo> {
    let ip = Ipv6Addr::from(*data.first_chunk()?);
    let is_source = match ip.to_ipv4_mapped() {
        Some(v4) => !(v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified()),
        None => !(ip.is_multicast() || ip.is_unspecified()),
    };
    let interface = if ip.is_unicast_link_local() {
        word(data, 16)?
    } else {
        0
    };
    is_source.then_some(PacketInfo {
        ip: ip.into(),
        interface,
    })
}

/// Closes received file descriptors. A Unix peer can send descriptors to any socket that has space
/// for control messages, whether or not they are wanted.
#[allow(unsafe_code)]
fn close(data: &[u8]) {
    for fd in data.chunks_exact(4) {
        let fd = i32::from_ne_bytes(*fd.first_chunk().expect("four bytes each"));
        // SAFETY: the kernel has just opened it in this process for the reader of this message,
        // which is read once, and no other code knows its number: unix(7), SCM_RIGHTS.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RXQ: (i32, i32) = (libc::SOL_SOCKET, libc::SO_RXQ_OVFL);

    /// Returns the messages one after the other, as the kernel writes them.
    fn written(list: &[((i32, i32), &[u8])]) -> Vec<u8> {
        let mut all = Vec::new();
        for ((level, kind), data) in list {
            let mut control = Received::EMPTY;
            let len = control.write(*level, *kind, data);
            all.extend_from_slice(&control.0[..len]);
        }
        all
    }

    #[test]
    fn written_source_address_is_read_back() {
        for (text, interface) in [
            ("127.0.0.2", 0),
            ("::1", 0),
            ("::ffff:10.0.0.1", 0),
            ("fe80::1", 7),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            let local = PacketInfo { ip, interface };
            let mut control = Sent::EMPTY;
            let len = control.set_source(local);
            assert_eq!(read(&control.0[..len]).local, Some(local), "{text}");
            // CMSG_SPACE(12) and CMSG_SPACE(20) on a 64-bit machine.
            if WORD == 8 {
                assert_eq!(len, if ip.is_ipv4() { 32 } else { 40 });
            }
        }
    }

    #[test]
    fn other_messages_are_skipped() {
        let time = (libc::SOL_SOCKET, libc::SCM_TIMESTAMP);
        let bytes = written(&[
            (time, &[1; 16]),
            (RXQ, &7_u32.to_ne_bytes()),
            (time, &[2; 3]),
            (
                (libc::IPPROTO_IP, libc::IP_PKTINFO),
                &[1, 0, 0, 0, 127, 0, 0, 2, 127, 0, 0, 255],
            ),
        ]);
        let local = PacketInfo {
            ip: [127, 0, 0, 2].into(),
            interface: 0,
        };
        let expected = ControlMessages {
            local: Some(local),
            drops: Some(7),
        };
        assert_eq!(read(&bytes), expected);
    }

    #[test]
    fn multicast_address_is_not_a_local_address() {
        for text in [
            "ff02::1",
            "::ffff:224.0.0.1",
            "::ffff:255.255.255.255",
            "::",
        ] {
            let ip: Ipv6Addr = text.parse().unwrap();
            let mut control = Received::EMPTY;
            let len = control.set_source(PacketInfo {
                ip: ip.into(),
                interface: 3,
            });
            assert_eq!(read(&control.0[..len]).local, None, "{text}");
        }
    }

    #[test]
    fn truncated_and_invalid_messages_are_ignored() {
        let whole = written(&[
            (RXQ, &7_u32.to_ne_bytes()),
            ((libc::IPPROTO_IP, libc::IP_PKTINFO), &[9; 12]),
        ]);
        for end in 0..whole.len() {
            let messages = read(&whole[..end]);
            let drops = (end >= HEADER + 4).then_some(7);
            // The bytes after the last byte of the second message are padding for a third one.
            let is_whole = end >= aligned(HEADER + 4) + HEADER + 12;
            assert_eq!(
                (messages.drops, messages.local.is_some()),
                (drops, is_whole),
                "{end}"
            );
        }
        // Lengths that would loop forever or point outside of the bytes.
        for len in [0, 1, HEADER - 1, HEADER, 999, usize::MAX - 3, usize::MAX] {
            let mut bytes = whole.clone();
            bytes[..WORD].copy_from_slice(&len.to_ne_bytes());
            let _ = read(&bytes);
        }
    }
}
