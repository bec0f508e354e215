//! The seam between a wait and whatever is put to sleep meanwhile.
//!
//! A system call that would block is the only place where the way of a request depends on who runs
//! it. Threads and processes let the kernel park them: their sockets are blocking, and `WouldBlock`
//! means that the kernel's timer ran out. Everything else brings a [`Park`]: its sockets are
//! non-blocking, and `WouldBlock` means "park me until this descriptor is ready". The loops in
//! `socket.rs` and `server/poller.rs` serve both; there is no second code path.

use std::any::Any;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::slice;
use std::sync::Arc;
use std::time::Instant;

use packet_batch::{SendFlags, Transmit};
use rustix::event::PollFlags;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, an end of input, or an error.
    Read,
    /// Room to write, or an error.
    Write,
}

impl Interest {
    /// The same for `poll(2)`.
    pub(crate) fn poll_flags(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::IN,
            Self::Write => PollFlags::OUT,
        }
    }
}

/// Parks the caller, on behalf of one descriptor, without blocking the thread under it.
///
/// Dropping it forgets the descriptor; that happens before the descriptor is closed.
pub trait Park: Send + Sync {
    /// Returns once `fd` is ready for `interest`, or reports `TimedOut` once `until` has passed,
    /// or `ConnectionAborted` when the server wants the wait to end for good. Waking up early is
    /// allowed: the caller tries its system call again.
    fn wait(
        &self,
        fd: BorrowedFd<'_>,
        interest: Interest,
        until: Option<Instant>,
    ) -> io::Result<()>;

    /// Whether the server wants all waits to end for good. Asked before each system call: a peer
    /// that is always ready never makes anybody wait.
    fn is_over(&self) -> bool {
        false
    }

    /// For a model that knows what it has made.
    fn as_any(&self) -> &dyn Any;

    /// Whether a read is known to find nothing, so that it is better to wait at once.
    fn is_exhausted(&self) -> bool {
        false
    }

    /// An operation has moved bytes; `drained` says that it was a read that found less than it had
    /// room for.
    fn record_progress(&self, drained: bool) {
        let _ = drained;
    }
}

/// Between two requests or messages of one peer, of which the second has arrived already: others may
/// go first, if this peer has kept its worker long enough. Threads and processes are interrupted by
/// the kernel.
#[inline]
pub(crate) fn give_way() {
    #[cfg(feature = "green")]
    greenroom::give_way();
}

pub(crate) fn send_packet(socket: &OwnedFd, packet: &Transmit<'_>) -> rustix::io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    packet_batch::send(socket, slice::from_ref(packet), flags).map(drop)
}

/// Makes the [`Park`] of each descriptor; a concurrency model that has one is not parked by the
/// kernel.
pub trait Parker: Send + Sync {
    /// Begins to watch a descriptor, which has been made non-blocking.
    fn attach(&self, fd: BorrowedFd<'_>) -> io::Result<Box<dyn Park>>;

    /// Sends a datagram without waiting for room. A model that serves many at once may send what
    /// they have to say together.
    fn send_packet(&self, socket: &Arc<OwnedFd>, packet: &Transmit<'_>) -> rustix::io::Result<()> {
        send_packet(socket, packet)
    }
}
