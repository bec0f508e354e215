//! The interface between a wait and the model that suspends the caller.
//!
//! A system call that would block is the only operation in which the concurrency models differ.
//! Threads and processes let the kernel block them: their sockets are blocking, and `WouldBlock`
//! means that the kernel's timer expired. Other models provide a [`Park`]: their sockets are
//! non-blocking, and `WouldBlock` means "park the caller until this descriptor is ready". The loops
//! in `socket.rs` and `server/poller.rs` serve both; there is no second code path.

use std::any::Any;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::slice;
use std::sync::Arc;
use std::time::Instant;

use packet_batch::{SendFlags, Transmit};
use rustix::event::PollFlags;

/// The event that a wait expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, the end of input, or an error.
    Read,
    /// Room to write, or an error.
    Write,
}

impl Interest {
    /// Returns the event as flags of `poll(2)`.
    pub(crate) fn poll_flags(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::IN,
            Self::Write => PollFlags::OUT,
        }
    }
}

/// Parks the caller for one descriptor without blocking its thread.
///
/// Dropping the `Park` stops watching the descriptor. It is dropped before the descriptor is
/// closed.
pub trait Park: Send + Sync {
    /// Waits until `fd` is ready for `interest`. Returns `TimedOut` after `until`, or
    /// `ConnectionAborted` if the server ends all waits. Waking up early is allowed: the caller
    /// retries its system call.
    fn wait(
        &self,
        fd: BorrowedFd<'_>,
        interest: Interest,
        until: Option<Instant>,
    ) -> io::Result<()>;

    /// Returns true if the server ends all waits. Called before each system call, because a
    /// connection to a peer that is always ready never waits.
    fn is_over(&self) -> bool {
        false
    }

    /// Returns the concrete type, for the model that created it.
    fn as_any(&self) -> &dyn Any;

    /// Returns true if a read would find no input, so that the caller should wait first.
    fn is_exhausted(&self) -> bool {
        false
    }

    /// Records that an operation has transferred bytes. `drained` is true for a read that returned
    /// less than its buffer could hold.
    fn record_progress(&self, drained: bool) {
        let _ = drained;
    }
}

/// Lets other coroutines run between two messages of one peer, if the peer has occupied its worker
/// long enough. Called if the second message has already arrived, so that no wait does this. The
/// kernel preempts threads and processes.
#[inline]
pub(crate) fn give_way() {
    #[cfg(feature = "green")]
    greenroom::give_way();
}

pub(crate) fn send_packet(socket: &OwnedFd, packet: &Transmit<'_>) -> rustix::io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    packet_batch::send(socket, slice::from_ref(packet), flags).map(drop)
}

/// Creates the [`Park`] of each descriptor, for a concurrency model that is not blocked by the
/// kernel.
pub trait Parker: Send + Sync {
    /// Begins to watch a non-blocking descriptor.
    fn attach(&self, fd: BorrowedFd<'_>) -> io::Result<Box<dyn Park>>;

    /// Sends a datagram without waiting for room. A model that serves many datagrams at once may
    /// send several replies together.
    fn send_packet(&self, socket: &Arc<OwnedFd>, packet: &Transmit<'_>) -> rustix::io::Result<()> {
        send_packet(socket, packet)
    }
}
