//! Deadlines of parked coroutines, at most one for each.

use std::collections::BTreeSet;
use std::time::Instant;

/// Which coroutines want to be woken up when. An index stands in it once at most.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeSet<(Instant, u32)>);

impl Timers {
    pub(crate) fn insert(&mut self, at: Instant, index: u32) {
        self.0.insert((at, index));
    }

    pub(crate) fn remove(&mut self, at: Instant, index: u32) {
        self.0.remove(&(at, index));
    }

    /// When the next one comes up.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes out one that has come up.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<u32> {
        self.0.first().filter(|(at, _)| *at <= now)?;
        self.0.pop_first().map(|(_, index)| index)
    }
}
