//! Kernel buffer sizes of datagram sockets.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::sockopt;

use super::SocketOptions;
use crate::BindError;

/// Sets the requested buffer sizes, or returns an error, because a buffer smaller than configured
/// is noticed only when datagrams are lost.
pub(super) fn set(socket: &impl AsFd, options: &SocketOptions) -> Result<(), BindError> {
    if let Some(bytes) = options.receive_buffer {
        Buffer {
            option: "receive_buffer",
            ceiling: "net.core.rmem_max",
            set: |fd, bytes| sockopt::set_socket_recv_buffer_size(fd, bytes),
            force: |fd, bytes| sockopt::set_socket_recv_buffer_size_force(fd, bytes),
            get: |fd| sockopt::socket_recv_buffer_size(fd),
        }
        .request(socket, bytes)?;
    }
    if let Some(bytes) = options.send_buffer {
        Buffer {
            option: "send_buffer",
            ceiling: "net.core.wmem_max",
            set: |fd, bytes| sockopt::set_socket_send_buffer_size(fd, bytes),
            force: |fd, bytes| sockopt::set_socket_send_buffer_size_force(fd, bytes),
            get: |fd| sockopt::socket_send_buffer_size(fd),
        }
        .request(socket, bytes)?;
    }
    Ok(())
}

struct Buffer<S> {
    option: &'static str,
    ceiling: &'static str,
    set: fn(&S, usize) -> rustix::io::Result<()>,
    force: fn(&S, usize) -> rustix::io::Result<()>,
    get: fn(&S) -> rustix::io::Result<usize>,
}

impl<S: AsFd> Buffer<S> {
    fn request(&self, socket: &S, bytes: usize) -> Result<(), BindError> {
        let rejected = |reason: String| BindError::BadOption {
            option: self.option,
            reason,
        };
        let failed = |errno: Errno| rejected(format!("the system rejects {bytes} bytes: {errno}"));
        (self.set)(socket, bytes).map_err(failed)?;
        // The kernel doubles the size, for the bookkeeping data of each datagram: socket(7).
        let effective = || {
            (self.get)(socket)
                .map(|doubled| doubled / 2)
                .map_err(failed)
        };
        // The kernel silently limits the size to the sysctl. CAP_NET_ADMIN overrides this limit.
        if effective()? < bytes && (self.force)(socket, bytes).is_err() {
            return Err(rejected(format!(
                "the system grants only {} of {bytes} bytes: raise the sysctl {}, or request less",
                effective()?,
                self.ceiling
            )));
        }
        Ok(())
    }
}
