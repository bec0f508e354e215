//! How much may be sent to a peer that may not be the one who sent the datagram.
//!
//! The source address of a datagram is what its sender wrote there. Whoever answers more than was
//! sent lets anybody aim more traffic at a third party than he has himself: amplification.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::chain;

/// Why a [reply](crate::Datagram::reply) was not sent: together with what was sent before, it would
/// be more than [`max_amplification`](crate::Builder::max_amplification) allows.
///
/// It is inside of an [`io::Error`] of the kind [`QuotaExceeded`](io::ErrorKind::QuotaExceeded):
///
/// ```
/// use socketserver::{AmplificationExceeded, Datagram, Result};
///
/// fn answer(packet: &Datagram, whole: &[u8], brief: &[u8]) -> Result<()> {
///     match packet.reply(whole) {
///         Err(error) if error.get_ref().is_some_and(|e| e.is::<AmplificationExceeded>()) => {
///             Ok(packet.reply(brief)?)
///         }
///         sent => Ok(sent?),
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error(
    "a reply of {reply} bytes was not sent: {received} bytes may be answered with {factor} times as \
     much, in {factor} replies, until the handler has called `mark_validated`; send less, have \
     clients send more, or raise `max_amplification`"
)]
pub struct AmplificationExceeded {
    /// How long the reply was.
    pub reply: usize,
    /// How long the datagram was that it answers.
    pub received: usize,
    /// The limit.
    pub factor: u32,
}

impl AmplificationExceeded {
    /// Whether this is what a handler has failed with.
    pub(crate) fn is_in(error: &(dyn std::error::Error + 'static)) -> bool {
        chain(error)
            .filter_map(|error| error.downcast_ref::<io::Error>()?.get_ref())
            .any(<dyn std::error::Error + Send + Sync>::is::<Self>)
    }
}

/// What is left for one datagram. Several threads may reply to it.
#[derive(Debug)]
pub(super) struct AmplificationBudget {
    received: usize,
    factor: u32,
    bytes: AtomicU64,
    /// Replies are limited, too, as an empty one is no bytes, and yet a packet.
    replies: AtomicU64,
    validated: AtomicBool,
}

impl AmplificationBudget {
    pub(super) fn new(received: usize, factor: u32) -> Self {
        let factor_wide = u64::from(factor);
        Self {
            received,
            factor,
            bytes: AtomicU64::new(factor_wide.saturating_mul(received as u64)),
            replies: AtomicU64::new(factor_wide),
            validated: AtomicBool::new(false),
        }
    }

    /// The peer is who he says: no limit from now on.
    pub(super) fn lift(&self) {
        self.validated.store(true, Ordering::Relaxed);
    }

    /// Takes a reply's share.
    pub(super) fn take(&self, reply: usize) -> Result<(), AmplificationExceeded> {
        if self.validated.load(Ordering::Relaxed) {
            return Ok(());
        }
        if take(&self.replies, 1) {
            if take(&self.bytes, reply as u64) {
                return Ok(());
            }
            self.replies.fetch_add(1, Ordering::Relaxed);
        }
        Err(AmplificationExceeded {
            reply,
            received: self.received,
            factor: self.factor,
        })
    }

    /// A reply that had its share was not sent.
    pub(super) fn give_back(&self, reply: usize) {
        self.bytes.fetch_add(reply as u64, Ordering::Relaxed);
        self.replies.fetch_add(1, Ordering::Relaxed);
    }
}

fn take(left: &AtomicU64, amount: u64) -> bool {
    let subtract = |left: u64| left.checked_sub(amount);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_so_many_times_in_bytes_and_in_replies() {
        let allowance = AmplificationBudget::new(10, 3);
        assert!(allowance.take(31).is_err());
        assert!(allowance.take(10).is_ok() && allowance.take(20).is_ok());
        assert!(allowance.take(1).is_err());
        assert!(allowance.take(0).is_ok(), "the third one");
        assert!(allowance.take(0).is_err());
        allowance.give_back(20);
        assert!(allowance.take(21).is_err() && allowance.take(20).is_ok());
        allowance.lift();
        assert!((0..100).all(|_| allowance.take(1000).is_ok()));
    }

    #[test]
    fn nothing_is_answered_with_nothing() {
        assert!(AmplificationBudget::new(10, 0).take(0).is_err());
        let to_nothing = AmplificationBudget::new(0, 2);
        assert!(to_nothing.take(1).is_err());
        assert!(to_nothing.take(0).is_ok());
        assert!(
            AmplificationBudget::new(usize::MAX, u32::MAX)
                .take(usize::MAX)
                .is_ok()
        );
    }
}
