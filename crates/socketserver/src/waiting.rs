//! What a connection waits for, as one word that other threads can read: the table of live requests
//! is searched by it while places are short.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The first complete message of the peer, or what comes before it: a header of a proxy, a
    /// handshake.
    Opening,
    /// The next message, of which nothing has arrived.
    Message,
    /// The same, of a protocol whose clients expect the connection to be closed meanwhile.
    Request,
    /// The rest of a message that is not the first.
    Rest,
    /// Room for what is being sent.
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

/// Zero while nothing is waited for; else the time when the wait began, in milliseconds of the
/// kernel's coarse clock, and what is waited for, in the lowest bits.
#[derive(Debug, Default)]
pub struct Waiting(AtomicU64);

const KIND_BITS: u32 = 3;

impl Waiting {
    /// A wait begins.
    pub(crate) fn begin(&self, what: Awaited) {
        let word = now_millis() << KIND_BITS | (what as u64 + 1);
        self.0.store(word, Ordering::Relaxed);
    }

    /// It is over.
    pub(crate) fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// A wait begins, and ends when what is returned is dropped.
    pub(crate) fn for_now(&self, what: Awaited) -> impl Drop + '_ {
        struct Ends<'a>(&'a Waiting);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.end();
            }
        }
        self.begin(what);
        Ends(self)
    }

    /// What is waited for, and for how long it was.
    pub(crate) fn read(&self) -> Option<(Awaited, Duration)> {
        let word = self.0.load(Ordering::Relaxed);
        let kind = usize::try_from(word & ((1 << KIND_BITS) - 1)).unwrap_or_default();
        let what = *Awaited::ALL.get(kind.checked_sub(1)?)?;
        let lasted = now_millis().saturating_sub(word >> KIND_BITS);
        Some((what, Duration::from_millis(lasted)))
    }
}

/// The coarse clock: it is as exact as the kernel's tick (1 to 10 ms), and reading it takes a few
/// nanoseconds, `clock_gettime(2)`.
fn now_millis() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1000 + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_while_it_lasts() {
        let waiting = Waiting::default();
        assert_eq!(waiting.read(), None);
        for what in Awaited::ALL {
            waiting.begin(what);
            let (told, lasted) = waiting.read().unwrap();
            assert_eq!(told, what);
            assert!(lasted < Duration::from_secs(10));
            waiting.end();
            assert_eq!(waiting.read(), None);
        }
        drop(waiting.for_now(Awaited::Room));
        assert_eq!(waiting.read(), None);
    }
}
