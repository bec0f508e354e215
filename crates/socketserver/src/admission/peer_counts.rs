//! The number of slots that each peer holds.

use std::collections::HashMap;

use super::PeerKey;

/// A peer must make room for a newcomer if it holds at least this many more slots.
const MORE: usize = 3;

/// The number of slots that each peer holds. Peers without an IP address, with the key `None`,
/// count as one peer.
#[derive(Debug, Default)]
pub(crate) struct PeerCounts(HashMap<Option<PeerKey>, usize>);

impl PeerCounts {
    pub(crate) fn add(&mut self, peer: Option<PeerKey>) {
        *self.0.entry(peer).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, peer: Option<PeerKey>) {
        if let Some(count) = self.0.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&peer);
            }
        }
    }

    pub(crate) fn of(&self, peer: Option<PeerKey>) -> usize {
        self.0.get(&peer).copied().unwrap_or_default()
    }

    /// Returns the peer that must make room for `newcomer`: the peer that holds most slots, if it
    /// holds many more than the newcomer.
    pub(crate) fn makes_room_for(&self, newcomer: Option<PeerKey>) -> Option<Option<PeerKey>> {
        let (most, count) = self.0.iter().max_by_key(|(_, count)| **count)?;
        (*count >= self.of(newcomer) + MORE).then_some(*most)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Option<PeerKey>> for PeerCounts {
    fn from_iter<I: IntoIterator<Item = Option<PeerKey>>>(peers: I) -> Self {
        let mut counts = Self::default();
        for peer in peers {
            counts.add(peer);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_with_many_more_makes_room_for_others_and_not_for_itself() {
        let [one, other] = [1, 2].map(|peer| Some(PeerKey::V4(peer)));
        let mut counts: PeerCounts = [one, one].into_iter().collect();
        assert_eq!(counts.makes_room_for(other), None);
        counts.add(one);
        assert_eq!(counts.makes_room_for(other), Some(one));
        assert_eq!(counts.makes_room_for(one), None);
        counts.add(other);
        assert_eq!(counts.makes_room_for(other), None);
        for peer in [one, one, one, other] {
            counts.remove(peer);
        }
        assert!(counts.is_empty());
        let without_address: PeerCounts = [None; 3].into_iter().collect();
        assert_eq!(without_address.makes_room_for(one), Some(None));
    }
}
