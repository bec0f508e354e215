//! The rate limit of one member's messages. Nothing here waits.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::RoomLimits;
use crate::Rate;
use crate::admission::Bucket;

/// The two token buckets of a member.
#[derive(Debug)]
pub(super) struct Pace {
    bytes: Option<Rate>,
    messages: Option<Rate>,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    bytes: Bucket,
    messages: Bucket,
}

impl Pace {
    pub(super) fn new(limits: RoomLimits) -> Self {
        Self {
            bytes: limits.byte_rate,
            messages: limits.message_rate,
            buckets: Mutex::default(),
        }
    }

    /// Charges a message of `len` bytes, or returns the time of the next attempt.
    pub(super) fn charge(&self, len: usize, now: Instant) -> Result<(), Instant> {
        if self.bytes.is_none() && self.messages.is_none() {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let before = buckets.messages;
        if let Some(rate) = self.messages {
            buckets.messages.charge(rate, 1.0, now)?;
        }
        if let Some(rate) = self.bytes {
            #[expect(clippy::cast_precision_loss, reason = "a length is far below 2^53")]
            let len = len as f64;
            if let Err(at) = buckets.bytes.charge(rate, len, now) {
                // Charge both buckets or none.
                buckets.messages = before;
                return Err(at);
            }
        }
        Ok(())
    }
}
