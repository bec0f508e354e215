//! How much the kernel keeps for a datagram socket.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::sockopt;

use super::SocketOptions;
use crate::BindError;

/// Sets what was asked for, or fails: a buffer that is smaller than the operator believes shows only
/// when it is too late.
pub(super) fn set(socket: &impl AsFd, options: &SocketOptions) -> Result<(), BindError> {
    if let Some(bytes) = options.receive_buffer {
        Buffer {
            option: "receive_buffer",
            ceiling: "net.core.rmem_max",
            set: |fd, bytes| sockopt::set_socket_recv_buffer_size(fd, bytes),
            force: |fd, bytes| sockopt::set_socket_recv_buffer_size_force(fd, bytes),
            get: |fd| sockopt::socket_recv_buffer_size(fd),
        }
        .ask_for(socket, bytes)?;
    }
    if let Some(bytes) = options.send_buffer {
        Buffer {
            option: "send_buffer",
            ceiling: "net.core.wmem_max",
            set: |fd, bytes| sockopt::set_socket_send_buffer_size(fd, bytes),
            force: |fd, bytes| sockopt::set_socket_send_buffer_size_force(fd, bytes),
            get: |fd| sockopt::socket_send_buffer_size(fd),
        }
        .ask_for(socket, bytes)?;
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
    fn ask_for(&self, socket: &S, bytes: usize) -> Result<(), BindError> {
        let refused = |reason: String| BindError::BadOption {
            option: self.option,
            reason,
        };
        let failed = |errno: Errno| refused(format!("the system refuses {bytes} bytes: {errno}"));
        (self.set)(socket, bytes).map_err(failed)?;
        // The kernel doubles it, to have room for what it keeps with each datagram: socket(7).
        let got = || {
            (self.get)(socket)
                .map(|doubled| doubled / 2)
                .map_err(failed)
        };
        // What is more than its ceiling it cuts without a word. CAP_NET_ADMIN has none.
        if got()? < bytes && (self.force)(socket, bytes).is_err() {
            return Err(refused(format!(
                "the system gives no more than {} of {bytes} bytes; raise the sysctl {}, or ask \
                 for less",
                got()?,
                self.ceiling
            )));
        }
        Ok(())
    }
}
