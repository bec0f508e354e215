//! Requests that were accepted and wait, for a bounded time, until there is room for them.

use std::collections::VecDeque;
use std::time::Instant;

use super::pending::AcceptedRequest;
use crate::Address;
use crate::admission::{PeerCounts, PeerKey};

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

    /// Removes the oldest request of the peer that must
    /// [make room](PeerCounts::makes_room_for) for the newcomer.
    pub(super) fn displaced_by(&mut self, newcomer: &Address) -> Option<AcceptedRequest<R>> {
        let places: PeerCounts = self.waiting.iter().map(|(_, job)| peer_of(job)).collect();
        let most = places.makes_room_for(PeerKey::of_peer(newcomer))?;
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
