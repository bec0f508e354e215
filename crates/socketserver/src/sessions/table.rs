//! The table under its lock: found by address, and in the order in which peers were last heard.
//! Every step takes the same time, however many there are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{SessionError, SessionLimits};
use crate::Address;
use crate::admission::PeerKey;

pub(super) struct Table<S> {
    by_peer: HashMap<Address, usize>,
    /// How many are from one IP address; those with none are not here.
    by_address: HashMap<PeerKey, usize>,
    slots: Vec<Option<Session<S>>>,
    free: Vec<usize>,
    /// Heard from longest ago, and last.
    ends: Option<(usize, usize)>,
}

struct Session<S> {
    peer: Address,
    state: Arc<S>,
    heard: Instant,
    /// Its neighbours in the order in which they were heard.
    older: Option<usize>,
    newer: Option<usize>,
}

/// What a peer finds.
pub(super) enum Place<S> {
    Taken(Arc<S>),
    Free,
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self {
            by_peer: HashMap::new(),
            by_address: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            ends: None,
        }
    }
}

impl<S> Table<S> {
    pub(super) fn len(&self) -> usize {
        self.by_peer.len()
    }

    /// The state of a peer that was heard now.
    pub(super) fn touch(&mut self, peer: &Address, now: Instant) -> Option<Arc<S>> {
        let slot = *self.by_peer.get(peer)?;
        self.unlink(slot);
        self.link(slot);
        let session = self.slots[slot].as_mut()?;
        session.heard = now;
        Some(session.state.clone())
    }

    /// The state of a peer that was heard now, or whether there may be one.
    pub(super) fn place(
        &mut self,
        peer: &Address,
        limits: &SessionLimits,
        now: Instant,
    ) -> Result<Place<S>, SessionError> {
        if let Some(state) = self.touch(peer, now) {
            return Ok(Place::Taken(state));
        }
        if self.len() >= limits.sessions {
            return Err(SessionError::Full);
        }
        let from_there = key(peer).and_then(|key| self.by_address.get(&key));
        if from_there.copied().unwrap_or_default() >= limits.per_address {
            return Err(SessionError::AddressFull);
        }
        Ok(Place::Free)
    }

    /// Enters a peer that has no session.
    pub(super) fn insert(&mut self, peer: &Address, state: Arc<S>, now: Instant) {
        let session = Session {
            peer: peer.clone(),
            state,
            heard: now,
            older: None,
            newer: None,
        };
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(free) => *free = Some(session),
            None => self.slots.push(Some(session)),
        }
        self.by_peer.insert(peer.clone(), slot);
        if let Some(key) = key(peer) {
            *self.by_address.entry(key).or_default() += 1;
        }
        self.link(slot);
    }

    pub(super) fn remove(&mut self, peer: &Address) -> Option<Arc<S>> {
        let slot = self.by_peer.remove(peer)?;
        self.unlink(slot);
        let session = self.slots[slot].take()?;
        self.free.push(slot);
        if let Some(key) = key(peer)
            && let Some(count) = self.by_address.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&key);
            }
        }
        Some(session.state)
    }

    /// Takes out those who were not heard for so long.
    pub(super) fn expire(&mut self, idle: Duration, now: Instant) -> Vec<Arc<S>> {
        let mut expired = Vec::new();
        while let Some(peer) = self.oldest(idle, now) {
            expired.extend(self.remove(&peer));
        }
        expired
    }

    /// Whoever was heard longest ago, if that is too long.
    fn oldest(&self, idle: Duration, now: Instant) -> Option<Address> {
        let (oldest, _) = self.ends?;
        let session = self.slots[oldest].as_ref()?;
        let silent = now.saturating_duration_since(session.heard);
        (silent >= idle).then(|| session.peer.clone())
    }

    /// Puts a session at the end of those that were heard last.
    fn link(&mut self, slot: usize) {
        let newest = self.ends.map(|(_, newest)| newest);
        if let Some(session) = &mut self.slots[slot] {
            (session.older, session.newer) = (newest, None);
        }
        if let Some(newest) = newest {
            self.set_newer(newest, Some(slot));
        }
        let oldest = self.ends.map_or(slot, |(oldest, _)| oldest);
        self.ends = Some((oldest, slot));
    }

    /// Takes a session out of the order.
    fn unlink(&mut self, slot: usize) {
        let (Some(session), Some((oldest, newest))) = (&self.slots[slot], self.ends) else {
            return;
        };
        let (older, newer) = (session.older, session.newer);
        if let Some(older) = older {
            self.set_newer(older, newer);
        }
        if let Some(newer) = newer
            && let Some(session) = &mut self.slots[newer]
        {
            session.older = older;
        }
        let oldest = if oldest == slot { newer } else { Some(oldest) };
        let newest = if newest == slot { older } else { Some(newest) };
        self.ends = oldest.zip(newest);
    }

    fn set_newer(&mut self, slot: usize, newer: Option<usize>) {
        if let Some(session) = &mut self.slots[slot] {
            session.newer = newer;
        }
    }
}

fn key(peer: &Address) -> Option<PeerKey> {
    peer.as_inet().map(|inet| PeerKey::of(inet.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    const IDLE: Duration = Duration::from_secs(60);

    fn peer(host: u8, port: u16) -> Address {
        Address::Inet(SocketAddr::from(([10, 0, 0, host], port)))
    }

    /// All that is in it, from the oldest to the newest, once forwards and once backwards.
    fn order<S>(table: &Table<S>) -> Vec<Address> {
        let walk = |from: Option<usize>, next: fn(&Session<S>) -> Option<usize>| {
            let session = |slot: usize| table.slots[slot].as_ref().unwrap();
            std::iter::successors(from, |slot| next(session(*slot)))
                .map(|slot| session(slot).peer.clone())
                .collect::<Vec<_>>()
        };
        let forwards = walk(table.ends.map(|ends| ends.0), |session| session.newer);
        let mut backwards = walk(table.ends.map(|ends| ends.1), |session| session.older);
        backwards.reverse();
        assert_eq!(forwards, backwards);
        assert_eq!(forwards.len(), table.len());
        forwards
    }

    /// Against a plain list, with everything that can be done in an order nobody has thought of.
    #[test]
    fn agrees_with_a_list() {
        let limits = SessionLimits::default()
            .sessions(12)
            .per_address(5)
            .idle(IDLE);
        let mut table = Table::<u32>::default();
        let mut list: Vec<(Address, u32, Instant)> = Vec::new();
        let begin = Instant::now();
        let mut random = 1_u32;
        for step in 0..20_000_u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [_, host, port, what] = random.to_be_bytes().map(|byte| byte % 16);
            let peer = peer(host % 4, u16::from(port));
            let now = begin + Duration::from_secs(u64::from(step) * 3);

            let gone = table.expire(IDLE, now).len();
            let before = list.len();
            list.retain(|(_, _, heard)| now.duration_since(*heard) < IDLE);
            assert_eq!(gone, before - list.len());

            let at = list.iter().position(|(address, ..)| *address == peer);
            if what == 0 {
                let removed = table.remove(&peer).map(|state| *state);
                assert_eq!(removed, at.map(|at| list.remove(at).1));
            } else {
                let from_there = list
                    .iter()
                    .filter(|(it, ..)| it.as_inet().unwrap().ip() == peer.as_inet().unwrap().ip());
                let from_there = from_there.count();
                match (table.place(&peer, &limits, now), at) {
                    (Ok(Place::Taken(state)), Some(at)) => {
                        let (address, expected, _) = list.remove(at);
                        assert_eq!(*state, expected);
                        list.push((address, expected, now));
                    }
                    (Ok(Place::Free), None) => {
                        assert!(list.len() < 12 && from_there < 5);
                        table.insert(&peer, Arc::new(step), now);
                        list.push((peer, step, now));
                    }
                    (Err(SessionError::Full), None) => assert_eq!(list.len(), 12),
                    (Err(SessionError::AddressFull), None) => assert_eq!(from_there, 5),
                    _ => panic!("they disagree about {peer}"),
                }
            }
            let expected: Vec<_> = list.iter().map(|(address, ..)| address.clone()).collect();
            assert_eq!(order(&table), expected);
        }
        assert!(table.slots.len() <= 12, "slots are used again");
        assert!(table.by_address.len() <= 4);
    }

    #[test]
    fn neighbours_in_ipv6_share_their_places_and_unix_peers_have_their_own() {
        let limits = SessionLimits::default().per_address(1);
        let (mut table, now) = (Table::default(), Instant::now());
        let mut enters = |peer: &Address| {
            let place = table.place(peer, &limits, now).map(drop);
            if place.is_ok() {
                table.insert(peer, Arc::new(()), now);
            }
            place
        };
        let inet = |text: &str| Address::Inet(text.parse().unwrap());
        assert!(enters(&inet("[2001:db8::1]:5")).is_ok());
        let refused = enters(&inet("[2001:db8::2]:5")).unwrap_err();
        assert_eq!(refused, SessionError::AddressFull);
        assert!(enters(&inet("[2001:db8:0:1::1]:5")).is_ok());
        for path in ["/tmp/a", "/tmp/b"] {
            let unix = crate::UnixAddress::parse(path.as_ref());
            assert!(enters(&Address::Unix(unix)).is_ok());
        }
    }
}
