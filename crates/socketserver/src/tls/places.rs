//! The limit of concurrent TLS handshakes.
//!
//! At the limit, a new handshake displaces a slow one, or one of an address that has many.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::admission::{PeerCounts, PeerKey};

/// Time after which a new handshake may displace another one: two round trips to any place on
/// Earth.
const LEFT_ALONE: Duration = Duration::from_millis(500);

/// A connection that holds a handshake slot.
pub(crate) struct Holder {
    /// `None` for peers without an IP address, which count as one peer.
    pub(crate) peer: Option<PeerKey>,
    /// Displaces the connection. `None` if the connection cannot be displaced.
    pub(crate) cut: Option<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
pub(super) struct Places(Mutex<Held>);

#[derive(Default)]
struct Held {
    next: u64,
    by_number: BTreeMap<u64, (Holder, Instant)>,
    of_peers: PeerCounts,
}

/// A handshake slot. Dropping it frees the slot.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
}

impl Places {
    /// Takes one of `max` slots. The `bool` is true if another handshake was displaced for it.
    /// Returns `None` if no slot is free.
    pub(super) fn take(self: &Arc<Self>, holder: Holder, max: usize) -> Option<(Place, bool)> {
        let mut held = self.lock();
        let now = Instant::now();
        let victim = match held.by_number.len() < max {
            true => None,
            false => Some(held.victim_of(&holder, now)?),
        };
        let victim = victim.and_then(|number| held.remove(number));
        let number = held.next;
        held.next += 1;
        held.of_peers.add(holder.peer);
        held.by_number.insert(number, (holder, now));
        drop(held);
        let cut = victim.and_then(|victim| victim.cut);
        if let Some(cut) = &cut {
            cut();
        }
        let place = Place {
            places: self.clone(),
            number,
        };
        Some((place, cut.is_some()))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Returns the handshake that `newcomer` displaces.
    fn victim_of(&self, newcomer: &Holder, now: Instant) -> Option<u64> {
        newcomer.cut.as_ref()?;
        let mut oldest = self.by_number.iter();
        let (number, _) = if let Some(most) = self.of_peers.makes_room_for(newcomer.peer) {
            oldest.find(|(_, (holder, _))| holder.peer == most)?
        } else {
            let lasted = |(_, (_, since)): &(&u64, &(Holder, Instant))| now - *since >= LEFT_ALONE;
            oldest.next().filter(lasted)?
        };
        Some(*number)
    }

    fn remove(&mut self, number: u64) -> Option<Holder> {
        let (holder, _) = self.by_number.remove(&number)?;
        self.of_peers.remove(holder.peer);
        Some(holder)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // `None` if the handshake was displaced: then another handshake holds the slot.
        let held = self.places.lock().remove(self.number);
        drop(held);
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Holder").field(&self.peer).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn of(peer: u32, cuts: &Arc<AtomicUsize>) -> Holder {
        let cuts = cuts.clone();
        Holder {
            peer: Some(PeerKey::V4(peer)),
            cut: Some(Box::new(move || {
                cuts.fetch_add(1, Ordering::Relaxed);
            })),
        }
    }

    #[test]
    fn an_address_with_many_makes_room_for_others_and_not_for_itself() {
        let (places, cuts) = (Arc::new(Places::default()), Arc::default());
        let mut held: Vec<_> = (0..8)
            .map(|_| places.take(of(1, &cuts), 8).unwrap())
            .collect();
        assert!(held.iter().all(|(_, has_cut)| !has_cut));
        assert!(places.take(of(1, &cuts), 8).is_none());
        let (newcomer, has_cut) = places.take(of(2, &cuts), 8).unwrap();
        assert!(has_cut && cuts.load(Ordering::Relaxed) == 1);
        // The one that was cut gives back nothing.
        drop(held.remove(0));
        assert_eq!(places.lock().by_number.len(), 8);
        drop(newcomer);
        drop(held);
        let empty = places.lock();
        assert!(empty.by_number.is_empty() && empty.of_peers.is_empty());
    }

    #[test]
    fn what_takes_too_long_makes_room_for_anyone() {
        let (places, cuts) = (Arc::new(Places::default()), Arc::default());
        let _held = places.take(of(1, &cuts), 1).unwrap();
        assert!(places.take(of(2, &cuts), 1).is_none());
        for (_, since) in places.lock().by_number.values_mut() {
            *since -= LEFT_ALONE;
        }
        let _newcomer = places.take(of(2, &cuts), 1).unwrap();
        let keeps = Holder {
            peer: None,
            cut: None,
        };
        assert!(places.take(keeps, 1).is_none());
    }
}
