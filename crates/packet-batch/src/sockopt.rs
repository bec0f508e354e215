//! Socket options that rustix lacks: metadata of datagrams, and the number of unacknowledged bytes
//! of a stream.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

use crate::narrow;

/// Enables the count of datagrams that the kernel has dropped because the receive buffer was full
/// or the checksum was wrong: `SO_RXQ_OVFL`, `socket(7)`. A Unix socket drops no datagrams and
/// reports no count.
///
/// # Errors
/// Returns the errors of `setsockopt(2)`.
pub fn set_recv_drop_count(socket: impl AsFd) -> rustix::io::Result<()> {
    enable(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL)
}

/// Enables the report of the local address that each datagram was sent to: `IP_PKTINFO`, `ip(7)`,
/// or `IPV6_RECVPKTINFO`, `ipv6(7)`.
///
/// # Errors
/// Returns `EAFNOSUPPORT` if the socket is neither IPv4 nor IPv6, and the errors of
/// `setsockopt(2)`.
pub fn set_recv_pktinfo(socket: impl AsFd) -> rustix::io::Result<()> {
    match socket_domain(&socket)? {
        AddressFamily::INET => enable(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO),
        // The option covers IPv4 datagrams, too, with their addresses in the form of IPv6.
        AddressFamily::INET6 => enable(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        _ => Err(Errno::AFNOSUPPORT),
    }
}

/// Returns the number of bytes sent over a stream socket that the peer has not acknowledged:
/// `SIOCOUTQ`, `tcp(7)`. For a Unix socket, returns the amount of memory that holds unread data.
///
/// # Errors
/// Returns the errors of `ioctl(2)`: `EINVAL` if the socket is a listener.
pub fn unconfirmed(socket: impl AsFd) -> rustix::io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: this request writes one `int` to the address in its argument, which is `count`, and
    // touches nothing else: tcp(7), unix(7).
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if done == 0 {
        Ok(usize::try_from(count).unwrap_or_default())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

fn enable(socket: &impl AsFd, level: i32, option: i32) -> rustix::io::Result<()> {
    let on = 1_i32;
    // SAFETY: `on` is an `int` as these options take it, of the given length, and outlives the
    // call, which only reads it.
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
