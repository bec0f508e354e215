//! The deadlines of parked coroutines, at most one for each.

use std::collections::BTreeSet;
use std::time::Instant;

/// A sorted set of deadlines and the indices of their coroutines. Each index is in it at most once.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeSet<(Instant, u32)>);

impl Timers {
    pub(crate) fn insert(&mut self, at: Instant, index: u32) {
        self.0.insert((at, index));
    }

    pub(crate) fn remove(&mut self, at: Instant, index: u32) {
        self.0.remove(&(at, index));
    }

    /// Returns the next deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Removes and returns one coroutine whose deadline has passed.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<u32> {
        self.0.first().filter(|(at, _)| *at <= now)?;
        self.0.pop_first().map(|(_, index)| index)
    }
}
