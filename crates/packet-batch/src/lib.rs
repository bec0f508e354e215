//! Receives and sends many datagrams with one system call, `recvmmsg(2)` and `sendmmsg(2)`, in safe
//! Rust.
//!
//! A [`Batch`] is filled from a socket and then emptied datagram by datagram. [`send`](fn@send)
//! takes a slice of datagrams. Both work with any socket that preserves message boundaries, such as
//! UDP and Unix datagram sockets.
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
//! # Metadata of a datagram
//!
//! A batch [`with_packet_info`](Batch::with_packet_info) also receives the local address that a
//! datagram was sent to and the number of datagrams that the kernel has dropped, if these are
//! enabled on the socket with [`set_recv_pktinfo`] and [`set_recv_drop_count`]. A reply can then be
//! sent from that address:
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
//! // The client receives only from the address that it is connected to.
//! assert_eq!(client.recv(&mut [0; 9])?, 2);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Platform
//!
//! Runs on Linux only.

#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(not(target_os = "linux"))]
compile_error!("packet-batch requires Linux: it wraps recvmmsg(2) and sendmmsg(2)");

mod cmsg;
mod receive;
mod send;
mod sockopt;

pub use cmsg::PacketInfo;
pub use receive::{Batch, Packet};
pub use rustix::net::SendFlags;
pub use send::{Transmit, send};
pub use sockopt::{set_recv_drop_count, set_recv_pktinfo, unconfirmed};

/// Maximum number of datagrams that one call receives or sends.
pub const MAX: usize = 32;

/// Converts a length to the 32 bits of some kernel interfaces.
#[expect(clippy::cast_possible_truncation, reason = "at most 256")]
const fn narrow(small: usize) -> u32 {
    small as u32
}
