//! Common code of TCP and UDP: resolving addresses and binding sockets.

use std::fmt::Debug;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::{DualStack, SocketOptions};
use crate::BindError;

pub(super) fn resolve(
    address: &(impl ToSocketAddrs + Debug),
) -> Result<Vec<SocketAddr>, BindError> {
    let bad = |reason: String| BindError::BadAddress {
        address: format!("{address:?}"),
        reason,
    };
    let targets: Vec<_> = address
        .to_socket_addrs()
        .map_err(|e| {
            bad(format!(
                "{e}; an address is HOST:PORT, such as 127.0.0.1:8888"
            ))
        })?
        .collect();
    if targets.is_empty() {
        return Err(bad("the name has no address".into()));
    }
    Ok(targets)
}

pub(super) fn bound(
    target: SocketAddr,
    kind: SocketType,
    options: &SocketOptions,
) -> Result<OwnedFd, BindError> {
    let family = if target.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let fd = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
        .map_err(|errno| system("open a socket for", target, errno))?;
    let set = || {
        // For UDP, this option would let a second server take over the port.
        if options.reuse_address && kind == SocketType::STREAM {
            sockopt::set_socket_reuseaddr(&fd, true)?;
        }
        if options.reuse_port {
            sockopt::set_socket_reuseport(&fd, true)?;
        }
        if target.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, options.dual_stack == DualStack::Disabled)?;
        }
        Ok(())
    };
    set().map_err(|errno| system("set the options of", target, errno))?;
    rustix::net::bind(&fd, &target).map_err(|errno| refused(target, errno))?;
    Ok(fd)
}

/// Converts the error of a failed bind or listen.
pub(super) fn refused(target: SocketAddr, errno: Errno) -> BindError {
    let address = target.to_string();
    match errno {
        Errno::ADDRINUSE => BindError::AddressInUse {
            address,
            advice: "stop its owner or choose another address (port 0 lets the system choose a free \
                     one)",
        },
        Errno::ADDRNOTAVAIL => BindError::AddressNotAvailable { address },
        Errno::ACCESS | Errno::PERM => BindError::PermissionDenied {
            address,
            advice: "ports below 1024 need root or CAP_NET_BIND_SERVICE: choose a higher port",
        },
        errno => system("bind", target, errno),
    }
}

pub(super) fn system(step: &'static str, target: SocketAddr, errno: Errno) -> BindError {
    BindError::System {
        step,
        address: target.to_string(),
        source: errno.into(),
    }
}
