//! A limit on replies to a peer whose address is not validated.
//!
//! A sender can forge the source address of a datagram. A server whose replies are larger than the
//! requests lets an attacker direct more traffic at a third party than the attacker sends:
//! amplification.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::chain;

/// The error of a [reply](crate::Datagram::reply) that was not sent, because all replies together
/// would exceed [`max_amplification`](crate::Builder::max_amplification).
///
/// This error is the source of an [`io::Error`] of the kind
/// [`QuotaExceeded`](io::ErrorKind::QuotaExceeded):
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
    "a reply of {reply} bytes was not sent: the limit is {factor} times the {received} bytes of the \
     datagram, in {factor} replies; send less, have clients send more, raise `max_amplification`, or \
     call `mark_validated` for a validated peer"
)]
pub struct AmplificationExceeded {
    /// The length of the reply in bytes.
    pub reply: usize,
    /// The length of the received datagram in bytes.
    pub received: usize,
    /// The maximum amplification factor.
    pub factor: u32,
}

impl AmplificationExceeded {
    /// Returns true if a handler's error contains this error.
    pub(crate) fn is_in(error: &(dyn std::error::Error + 'static)) -> bool {
        chain(error)
            .filter_map(|error| error.downcast_ref::<io::Error>()?.get_ref())
            .any(<dyn std::error::Error + Send + Sync>::is::<Self>)
    }
}

/// The remaining budget of replies to one datagram. Several threads may reply to the datagram.
#[derive(Debug)]
pub(super) struct AmplificationBudget {
    received: usize,
    factor: u32,
    bytes: AtomicU64,
    /// The number of replies is limited, too, because an empty reply has no bytes but is a packet.
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

    /// Removes the limit, because the peer's address is validated.
    pub(super) fn lift(&self) {
        self.validated.store(true, Ordering::Relaxed);
    }

    /// Takes a reply from the budget.
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

    /// Returns a reply to the budget, because the reply was not sent.
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
    fn factor_limits_bytes_and_replies() {
        let budget = AmplificationBudget::new(10, 3);
        assert!(budget.take(31).is_err());
        assert!(budget.take(10).is_ok() && budget.take(20).is_ok());
        assert!(budget.take(1).is_err());
        assert!(budget.take(0).is_ok(), "the third reply");
        assert!(budget.take(0).is_err());
        budget.give_back(20);
        assert!(budget.take(21).is_err() && budget.take(20).is_ok());
        budget.lift();
        assert!((0..100).all(|_| budget.take(1000).is_ok()));
    }

    #[test]
    fn zero_factor_or_empty_datagram_permits_no_bytes() {
        assert!(AmplificationBudget::new(10, 0).take(0).is_err());
        let empty = AmplificationBudget::new(0, 2);
        assert!(empty.take(1).is_err());
        assert!(empty.take(0).is_ok());
        assert!(
            AmplificationBudget::new(usize::MAX, u32::MAX)
                .take(usize::MAX)
                .is_ok()
        );
    }
}
