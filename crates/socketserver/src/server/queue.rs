//! Requests that were accepted and wait, for a bounded time, until there is room for them.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::pending::AcceptedRequest;
use crate::Address;
use crate::admission::PeerKey;

pub(super) struct Queue<R> {
    /// In order of arrival, each with the end of its wait.
    waiting: VecDeque<(Instant, AcceptedRequest<R>)>,
}

impl<R> Default for Queue<R> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }
}

impl<R> Queue<R> {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, job: AcceptedRequest<R>, until: Instant) {
        job.record.set_queued(true);
        self.waiting.push_back((until, job));
    }

    /// Removes the request that has waited longest.
    pub(super) fn next(&mut self) -> Option<AcceptedRequest<R>> {
        let (_, job) = self.waiting.pop_front()?;
        job.record.set_queued(false);
        Some(job)
    }

    /// Removes the oldest request of the peer that has most places in the queue, if it has at least
    /// two more than the newcomer would have.
    pub(super) fn displaced_by(&mut self, newcomer: &Address) -> Option<AcceptedRequest<R>> {
        let mut places: HashMap<Option<PeerKey>, usize> = HashMap::new();
        for (_, job) in &self.waiting {
            *places.entry(peer_of(job)).or_default() += 1;
        }
        let own = places.get(&PeerKey::of_peer(newcomer)).copied();
        let (most, count) = places.into_iter().max_by_key(|(_, count)| *count)?;
        if count < own.unwrap_or_default() + 3 {
            return None;
        }
        let oldest = self
            .waiting
            .iter()
            .position(|(_, job)| peer_of(job) == most)?;
        let (_, job) = self.waiting.remove(oldest)?;
        job.record.set_queued(false);
        Some(job)
    }

    /// Removes a request whose wait has ended without a slot.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<AcceptedRequest<R>> {
        let (until, _) = self.waiting.front()?;
        (*until <= now).then(|| self.next()).flatten()
    }

    /// Returns the time of the next check.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.waiting.front().map(|(until, _)| *until)
    }

    /// Forgets the requests in a forked child, because they belong to the parent.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

fn peer_of<R>(job: &AcceptedRequest<R>) -> Option<PeerKey> {
    PeerKey::of_peer(job.record.info().peer())
}
