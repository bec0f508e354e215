//! The event that a connection waits for, stored in one atomic word. The displacement reads this
//! word of all active requests from another thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The event that a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The first complete message of the peer, or the preamble (PROXY header, TLS handshake) before
    /// it.
    Opening,
    /// The next message, if no byte of it has arrived.
    Message,
    /// The next message, in a protocol whose clients expect that an idle connection can be closed.
    Request,
    /// The rest of a message that is not the first message.
    Rest,
    /// Space in the send buffer.
    Room,
    /// The peer's end of a connection that is being closed.
    Close,
}

impl Awaited {
    const ALL: [Self; 6] = [
        Self::Opening,
        Self::Message,
        Self::Request,
        Self::Rest,
        Self::Room,
        Self::Close,
    ];
}

/// The current wait. The value is 0 while the connection does not wait. Otherwise the lowest bits
/// hold the event, and the other bits hold the start of the wait in milliseconds of the kernel's
/// coarse clock.
#[derive(Debug, Default)]
pub struct Waiting(AtomicU64);

const KIND_BITS: u32 = 3;

impl Waiting {
    /// Begins a wait.
    pub(crate) fn begin(&self, what: Awaited) {
        let word = now_millis() << KIND_BITS | (what as u64 + 1);
        self.0.store(word, Ordering::Relaxed);
    }

    /// Ends the wait.
    pub(crate) fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Begins a wait that ends when the returned guard is dropped.
    pub(crate) fn for_now(&self, what: Awaited) -> impl Drop + '_ {
        struct EndGuard<'a>(&'a Waiting);
        impl Drop for EndGuard<'_> {
            fn drop(&mut self) {
                self.0.end();
            }
        }
        self.begin(what);
        EndGuard(self)
    }

    /// Returns the awaited event and the duration of the wait.
    pub(crate) fn read(&self) -> Option<(Awaited, Duration)> {
        let word = self.0.load(Ordering::Relaxed);
        let kind = usize::try_from(word & ((1 << KIND_BITS) - 1)).unwrap_or_default();
        let what = *Awaited::ALL.get(kind.checked_sub(1)?)?;
        let lasted = now_millis().saturating_sub(word >> KIND_BITS);
        Some((what, Duration::from_millis(lasted)))
    }
}

/// Returns the time of the coarse clock. Its resolution is the kernel's tick (1 to 10 ms), and
/// reading it takes a few nanoseconds, `clock_gettime(2)`.
fn now_millis() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1000 + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_is_visible_until_it_ends() {
        let waiting = Waiting::default();
        assert_eq!(waiting.read(), None);
        for what in Awaited::ALL {
            waiting.begin(what);
            let (event, lasted) = waiting.read().unwrap();
            assert_eq!(event, what);
            assert!(lasted < Duration::from_secs(10));
            waiting.end();
            assert_eq!(waiting.read(), None);
        }
        drop(waiting.for_now(Awaited::Room));
        assert_eq!(waiting.read(), None);
    }
}
