//! Peers by address: how many requests of each are live, and how fast they came.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Admission;
use super::rate::Bucket;
use crate::Rejection;

/// How many peers are told apart. Beyond it newcomers share the limits of one peer with those of the
/// same hash.
const TOLD_APART: usize = 16_384;

/// How many hashes there are. They are keyed: a peer cannot choose whom it shares with.
const SHARED: u64 = 4096;

/// Looking for peers that can be forgotten takes a moment, and is not done more often than this.
const SWEEP: Duration = Duration::from_secs(1);

/// What of an address is not its owner's to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PeerKey {
    V4(u32),
    /// The first 64 bits.
    V6(u64),
    /// Those of one hash for whom there was no room.
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
    /// Those that are not told apart.
    others: HashMap<PeerKey, Peer>,
    hashes: RandomState,
    swept: Option<Instant>,
}

#[derive(Debug, Default)]
struct Peer {
    live: u32,
    bucket: Bucket,
}

impl Peers {
    /// Counts one more request of a peer in, if its limits allow it; under which key.
    pub(super) fn enter(
        &mut self,
        key: PeerKey,
        limits: &Admission,
        now: Instant,
    ) -> Result<PeerKey, Rejection> {
        let key = self.place(key, limits, now);
        let peer = self.peer(key);
        if limits.max_per_peer.is_some_and(|max| peer.live >= max) {
            return Err(Rejection::PeerLimit);
        }
        if let Some(rate) = limits.rate_per_peer
            && !peer.bucket.take(rate, now)
        {
            return Err(Rejection::PeerRate);
        }
        peer.live += 1;
        Ok(key)
    }

    /// Counts one that is live already, whatever the limits are now.
    pub(super) fn count(&mut self, key: PeerKey, limits: &Admission, now: Instant) -> PeerKey {
        let key = self.place(key, limits, now);
        self.peer(key).live += 1;
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
            peer.live = peer.live.saturating_sub(1);
        }
    }

    /// The key under which a peer is counted.
    fn place(&mut self, key: PeerKey, limits: &Admission, now: Instant) -> PeerKey {
        if self.known.len() < TOLD_APART || self.known.contains_key(&key) {
            return key;
        }
        let is_due = self
            .swept
            .is_none_or(|then| now.saturating_duration_since(then) >= SWEEP);
        if is_due {
            self.swept = Some(now);
            self.known.retain(|_, peer| {
                let rate = limits.rate_per_peer;
                peer.live > 0 || rate.is_some_and(|rate| !peer.bucket.is_full(rate, now))
            });
        }
        if self.known.len() < TOLD_APART {
            return key;
        }
        // Those who forge sources can fill the table, but not each of these.
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
    fn neighbours_in_ipv6_are_one_peer() {
        let key = |text: &str| PeerKey::of(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:0:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:1.2.3.4"), key("1.2.3.4"));
        assert_ne!(key("1.2.3.4"), key("1.2.3.5"));
    }

    #[test]
    fn each_peer_has_its_own_limits() {
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
    fn the_table_is_bounded_and_forgets_who_has_gone() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let limits = Admission::new().max_per_peer(1);
        let many = u32::try_from(TOLD_APART).unwrap();
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
        assert!(peers.known.len() <= TOLD_APART && peers.others.len() <= 4096);
        // Known ones are served as before, and places become free.
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
