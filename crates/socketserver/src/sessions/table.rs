//! The table behind the lock, indexed by address and ordered by the time of the last datagram.
//! Every operation takes constant time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{SessionError, SessionLimits};
use crate::Address;
use crate::admission::{PeerCounts, PeerKey};

pub(super) struct Table<S> {
    by_peer: HashMap<Address, usize>,
    /// The number of sessions per IP address. Unix peers are not included.
    by_address: PeerCounts,
    slots: Vec<Option<Session<S>>>,
    free: Vec<usize>,
    /// The least and the most recently used session.
    ends: Option<(usize, usize)>,
}

struct Session<S> {
    peer: Address,
    state: Arc<S>,
    last_seen: Instant,
    /// The neighbours in the order of `last_seen`.
    older: Option<usize>,
    newer: Option<usize>,
}

/// The result of looking up a peer that may get a session.
pub(super) enum Lookup<S> {
    Found(Arc<S>),
    Vacant,
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self {
            by_peer: HashMap::new(),
            by_address: PeerCounts::default(),
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

    /// Returns the state of a peer and marks its session as used now.
    pub(super) fn touch(&mut self, peer: &Address, now: Instant) -> Option<Arc<S>> {
        let slot = *self.by_peer.get(peer)?;
        self.unlink(slot);
        self.link(slot);
        let session = self.slots[slot].as_mut()?;
        session.last_seen = now;
        Some(session.state.clone())
    }

    /// Returns the state of a peer and marks its session as used now, or checks that the limits
    /// permit a new session.
    pub(super) fn lookup(
        &mut self,
        peer: &Address,
        limits: &SessionLimits,
        now: Instant,
    ) -> Result<Lookup<S>, SessionError> {
        if let Some(state) = self.touch(peer, now) {
            return Ok(Lookup::Found(state));
        }
        if self.len() >= limits.sessions {
            return Err(SessionError::Full);
        }
        if self.by_address.of(PeerKey::of_peer(peer)) >= limits.per_address {
            return Err(SessionError::AddressFull);
        }
        Ok(Lookup::Vacant)
    }

    /// Adds a session for a peer that has none.
    pub(super) fn insert(&mut self, peer: &Address, state: Arc<S>, now: Instant) {
        let session = Session {
            peer: peer.clone(),
            state,
            last_seen: now,
            older: None,
            newer: None,
        };
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(free) => *free = Some(session),
            None => self.slots.push(Some(session)),
        }
        self.by_peer.insert(peer.clone(), slot);
        if let key @ Some(_) = PeerKey::of_peer(peer) {
            self.by_address.add(key);
        }
        self.link(slot);
    }

    pub(super) fn remove(&mut self, peer: &Address) -> Option<Arc<S>> {
        let slot = self.by_peer.remove(peer)?;
        self.unlink(slot);
        let session = self.slots[slot].take()?;
        self.free.push(slot);
        self.by_address.remove(PeerKey::of_peer(peer));
        Some(session.state)
    }

    /// Removes the sessions that were idle for `idle`, and returns their states.
    pub(super) fn expire(&mut self, idle: Duration, now: Instant) -> Vec<Arc<S>> {
        let mut expired = Vec::new();
        while let Some(peer) = self.oldest(idle, now) {
            expired.extend(self.remove(&peer));
        }
        expired
    }

    /// Returns the peer of the least recently used session if that session has expired.
    fn oldest(&self, idle: Duration, now: Instant) -> Option<Address> {
        let (oldest, _) = self.ends?;
        let session = self.slots[oldest].as_ref()?;
        let silent = now.saturating_duration_since(session.last_seen);
        (silent >= idle).then(|| session.peer.clone())
    }

    /// Appends a session as the most recently used.
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

    /// Removes a session from the order.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    const IDLE: Duration = Duration::from_secs(60);

    fn peer(host: u8, port: u16) -> Address {
        Address::Inet(SocketAddr::from(([10, 0, 0, host], port)))
    }

    /// Returns all peers from the oldest to the newest session. Checks the list in both directions.
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

    /// Compares the table with a plain list under 20,000 random operations.
    #[test]
    fn table_agrees_with_a_list() {
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
            list.retain(|(_, _, last_seen)| now.duration_since(*last_seen) < IDLE);
            assert_eq!(gone, before - list.len());

            let at = list.iter().position(|(address, ..)| *address == peer);
            if what == 0 {
                let removed = table.remove(&peer).map(|state| *state);
                assert_eq!(removed, at.map(|at| list.remove(at).1));
            } else {
                let from_address = list
                    .iter()
                    .filter(|(it, ..)| it.as_inet().unwrap().ip() == peer.as_inet().unwrap().ip());
                let from_address = from_address.count();
                match (table.lookup(&peer, &limits, now), at) {
                    (Ok(Lookup::Found(state)), Some(at)) => {
                        let (address, expected, _) = list.remove(at);
                        assert_eq!(*state, expected);
                        list.push((address, expected, now));
                    }
                    (Ok(Lookup::Vacant), None) => {
                        assert!(list.len() < 12 && from_address < 5);
                        table.insert(&peer, Arc::new(step), now);
                        list.push((peer, step, now));
                    }
                    (Err(SessionError::Full), None) => assert_eq!(list.len(), 12),
                    (Err(SessionError::AddressFull), None) => assert_eq!(from_address, 5),
                    _ => panic!("table and list disagree about {peer}"),
                }
            }
            let expected: Vec<_> = list.iter().map(|(address, ..)| address.clone()).collect();
            assert_eq!(order(&table), expected);
        }
        assert!(table.slots.len() <= 12, "slots are reused");
        assert!(table.by_address.len() <= 4);
    }

    #[test]
    fn ipv6_network_shares_a_limit_and_unix_peers_do_not() {
        let limits = SessionLimits::default().per_address(1);
        let (mut table, now) = (Table::default(), Instant::now());
        let mut insert = |peer: &Address| {
            let lookup = table.lookup(peer, &limits, now).map(drop);
            if lookup.is_ok() {
                table.insert(peer, Arc::new(()), now);
            }
            lookup
        };
        let inet = |text: &str| Address::Inet(text.parse().unwrap());
        assert!(insert(&inet("[2001:db8::1]:5")).is_ok());
        let error = insert(&inet("[2001:db8::2]:5")).unwrap_err();
        assert_eq!(error, SessionError::AddressFull);
        assert!(insert(&inet("[2001:db8:0:1::1]:5")).is_ok());
        for path in ["/tmp/a", "/tmp/b"] {
            let unix = crate::UnixAddress::parse(path.as_ref());
            assert!(insert(&Address::Unix(unix)).is_ok());
        }
    }
}
