//! What rustix does not have of sockets: what the kernel shall tell beside each datagram, and how much
//! of a stream is under way.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

use crate::narrow;

/// Has the kernel tell how many datagrams it has dropped, as there was no room for them (or their
/// checksum was wrong): `SO_RXQ_OVFL`, `socket(7)`. Unix sockets drop none, and tell nothing.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn set_recv_drop_count(socket: impl AsFd) -> rustix::io::Result<()> {
    switch_on(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL)
}

/// Has the kernel tell which address of this machine each datagram was sent to: `IP_PKTINFO`,
/// `ip(7)`, or `IPV6_RECVPKTINFO`, `ipv6(7)`.
///
/// # Errors
/// `EAFNOSUPPORT` for a socket that is not of IPv4 or IPv6; those of `setsockopt(2)`.
pub fn set_recv_pktinfo(socket: impl AsFd) -> rustix::io::Result<()> {
    match socket_domain(&socket)? {
        AddressFamily::INET => switch_on(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO),
        // It tells of IPv4 datagrams, too, in the form of IPv6.
        AddressFamily::INET6 => switch_on(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        _ => Err(Errno::AFNOSUPPORT),
    }
}

/// Returns how many bytes that were sent over a stream socket its peer has not confirmed: `SIOCOUTQ`,
/// `tcp(7)`; over a Unix socket, how much memory holds what the peer has not read.
///
/// # Errors
/// Those of `ioctl(2)`: `EINVAL` for a socket that listens.
pub fn unconfirmed(socket: impl AsFd) -> rustix::io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: this request writes one `int` to where its argument points, which is `count`, and
    // touches nothing else: tcp(7), unix(7).
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if done == 0 {
        Ok(usize::try_from(count).unwrap_or_default())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

fn switch_on(socket: &impl AsFd, level: i32, option: i32) -> rustix::io::Result<()> {
    let on = 1_i32;
    // SAFETY: `on` is an `int` as these options take it, of the length that is given, and outlives
    // the call, which only reads it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            narrow(size_of_val(&on)),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}
