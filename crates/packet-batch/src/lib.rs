//! Receives and sends many datagrams with one system call, `recvmmsg(2)` and `sendmmsg(2)`, in safe
//! Rust.
//!
//! A [`Batch`] is filled from a socket and then emptied datagram by datagram; [`send`](fn@send) takes
//! a slice of them. Both are for any socket that keeps the bounds of messages: UDP, Unix datagram.
//!
//! ```
//! use packet_batch::{Batch, Transmit, SendFlags, send};
//! use std::net::UdpSocket;
//!
//! let server = UdpSocket::bind("127.0.0.1:0")?;
//! let client = UdpSocket::bind("127.0.0.1:0")?;
//! let to = server.local_addr()?.into();
//! let packets = [Transmit::new(b"one", &to), Transmit::new(b"two", &to)];
//! assert_eq!(send(&client, &packets, SendFlags::empty())?, 2);
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
//! # What the kernel tells beside a datagram
//!
//! A batch [`with_packet_info`](Batch::with_packet_info) also learns which of this machine's addresses a
//! datagram was sent to, and how many the kernel has dropped, if the socket was asked to tell
//! ([`set_recv_pktinfo`], [`set_recv_drop_count`]). A reply can then be sent from that address:
//!
//! ```
//! use packet_batch::{Batch, Transmit, SendFlags, send, set_recv_pktinfo};
//! use std::net::UdpSocket;
//!
//! let server = UdpSocket::bind("0.0.0.0:0")?;
//! set_recv_pktinfo(&server)?;
//! let client = UdpSocket::bind("127.0.0.1:0")?;
//! client.connect(("127.0.0.2", server.local_addr()?.port()))?;
//! client.send(b"hello")?;
//!
//! let mut batch = Batch::new(1500).with_packet_info();
//! batch.receive(&server, 1)?;
//! let packet = batch.next().unwrap();
//! let to = packet.from.unwrap();
//! let reply = Transmit::new(b"hi", &to).from(packet.local);
//! send(&server, &[reply], SendFlags::empty())?;
//! // It hears nobody but the address that it is connected to.
//! assert_eq!(client.recv(&mut [0; 9])?, 2);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Platform
//!
//! Linux.

#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(not(target_os = "linux"))]
compile_error!("packet-batch is a cover of recvmmsg(2) and sendmmsg(2), and needs Linux");

mod cmsg;
mod receive;
mod send;
mod sockopt;

pub use cmsg::PacketInfo;
pub use receive::{Batch, Packet};
pub use rustix::net::SendFlags;
pub use send::{Transmit, send};
pub use sockopt::{set_recv_drop_count, set_recv_pktinfo, unconfirmed};

/// The most that one call receives or sends.
pub const MAX: usize = 32;

/// A length for the kernel, which counts some of them in 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "no more than 256")]
const fn narrow(small: usize) -> u32 {
    small as u32
}
