//! A table of peers with the number of active requests and the request rate of each.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Admission;
use super::rate::Bucket;
use crate::Rejection;

/// The maximum number of peers that are tracked individually. Beyond it, new peers with the same
/// hash share the limits of one peer.
const MAX_TRACKED: usize = 16_384;

/// The number of hashes. The hash is keyed, so that a peer cannot choose the peers that it shares
/// with.
const SHARED: u64 = 4096;

/// The minimum time between two sweeps. A sweep removes unused entries and takes time proportional
/// to the size of the table.
const SWEEP: Duration = Duration::from_secs(1);

/// The part of an address that its owner cannot choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PeerKey {
    V4(u32),
    /// The first 64 bits of an IPv6 address.
    V6(u64),
    /// The peers of one hash that are not tracked individually.
    Others(u16),
}

impl PeerKey {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => Self::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Peers {
    known: HashMap<PeerKey, Peer>,
    /// The peers that are not tracked individually, by hash.
    others: HashMap<PeerKey, Peer>,
    hashes: RandomState,
    swept: Option<Instant>,
}

#[derive(Debug, Default)]
struct Peer {
    active: u32,
    bucket: Bucket,
}

impl Peers {
    /// Counts a further request of a peer if its limits allow the request. Returns the key of the
    /// counted entry.
    pub(super) fn enter(
        &mut self,
        key: PeerKey,
        limits: &Admission,
        now: Instant,
    ) -> Result<PeerKey, Rejection> {
        let key = self.entry_key(key, limits, now);
        let peer = self.peer(key);
        if limits.max_per_peer.is_some_and(|max| peer.active >= max) {
            return Err(Rejection::PeerLimit);
        }
        if let Some(rate) = limits.rate_per_peer
            && !peer.bucket.take(rate, now)
        {
            return Err(Rejection::PeerRate);
        }
        peer.active += 1;
        Ok(key)
    }

    /// Counts a request that is already active, regardless of the limits.
    pub(super) fn count(&mut self, key: PeerKey, limits: &Admission, now: Instant) -> PeerKey {
        let key = self.entry_key(key, limits, now);
        self.peer(key).active += 1;
        key
    }

    fn map(&mut self, key: PeerKey) -> &mut HashMap<PeerKey, Peer> {
        match key {
            PeerKey::Others(_) => &mut self.others,
            PeerKey::V4(_) | PeerKey::V6(_) => &mut self.known,
        }
    }

    fn peer(&mut self, key: PeerKey) -> &mut Peer {
        self.map(key).entry(key).or_default()
    }

    pub(super) fn leave(&mut self, key: PeerKey) {
        if let Some(peer) = self.map(key).get_mut(&key) {
            peer.active = peer.active.saturating_sub(1);
        }
    }

    /// Returns the key of the entry for a peer.
    fn entry_key(&mut self, key: PeerKey, limits: &Admission, now: Instant) -> PeerKey {
        if self.known.len() < MAX_TRACKED || self.known.contains_key(&key) {
            return key;
        }
        let is_due = self
            .swept
            .is_none_or(|then| now.saturating_duration_since(then) >= SWEEP);
        if is_due {
            self.swept = Some(now);
            self.known.retain(|_, peer| {
                let rate = limits.rate_per_peer;
                peer.active > 0 || rate.is_some_and(|rate| !peer.bucket.is_full(rate, now))
            });
        }
        if self.known.len() < MAX_TRACKED {
            return key;
        }
        // A peer with forged source addresses can fill the table, but not every shared entry.
        let hash = self.hashes.hash_one(key) % SHARED;
        PeerKey::Others(u16::try_from(hash).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rate;

    fn key(n: u32) -> PeerKey {
        PeerKey::V4(n)
    }

    #[test]
    fn ipv6_addresses_of_one_network_are_one_peer() {
        let key = |text: &str| PeerKey::of(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:0:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:1.2.3.4"), key("1.2.3.4"));
        assert_ne!(key("1.2.3.4"), key("1.2.3.5"));
    }

    #[test]
    fn limits_apply_to_each_peer_separately() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let limits = Admission::new().max_per_peer(2);
        for peer in [key(1), key(2)] {
            assert!(peers.enter(peer, &limits, now).is_ok());
            assert!(peers.enter(peer, &limits, now).is_ok());
            assert!(matches!(
                peers.enter(peer, &limits, now),
                Err(Rejection::PeerLimit)
            ));
        }
        peers.leave(key(1));
        assert!(peers.enter(key(1), &limits, now).is_ok());
        let slow = Admission::new().rate_per_peer(Rate::per_second(1).burst(2));
        assert!(peers.enter(key(3), &slow, now).is_ok());
        assert!(peers.enter(key(3), &slow, now).is_ok());
        assert!(matches!(
            peers.enter(key(3), &slow, now),
            Err(Rejection::PeerRate)
        ));
        let later = now + Duration::from_secs(1);
        assert!(peers.enter(key(3), &slow, later).is_ok());
    }

    #[test]
    fn table_is_bounded_and_forgets_inactive_peers() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let limits = Admission::new().max_per_peer(1);
        let many = u32::try_from(MAX_TRACKED).unwrap();
        for n in 0..many {
            assert_eq!(peers.enter(key(n), &limits, now).unwrap(), key(n));
        }
        // All are live: those who come now share what one peer may have with others of their hash.
        let shared = peers.enter(key(many), &limits, now).unwrap();
        assert!(matches!(shared, PeerKey::Others(_)));
        assert!(matches!(
            peers.enter(key(many), &limits, now),
            Err(Rejection::PeerLimit)
        ));
        let newcomers = many + 1_000_000..many + 1_000_053;
        let refused = newcomers.filter(|n| peers.enter(key(*n), &limits, now).is_err());
        assert!(refused.count() < 8, "few of 53 share with another");
        for n in many + 2_000_000..many + 2_050_000 {
            let _ = peers.enter(key(n), &limits, now);
        }
        assert!(peers.known.len() <= MAX_TRACKED && peers.others.len() <= 4096);
        // Known peers keep their entries, and unused entries become free.
        peers.leave(key(0));
        assert_eq!(peers.enter(key(0), &limits, now).unwrap(), key(0));
        peers.leave(key(1));
        peers.leave(key(2));
        let later = now + SWEEP;
        assert_eq!(
            peers.enter(key(many + 2), &limits, later).unwrap(),
            key(many + 2)
        );
    }
}
