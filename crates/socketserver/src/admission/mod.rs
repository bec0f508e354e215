//! Admission control: which peers may connect, how many connections each may have, and at which
//! rate.
//!
//! Admission control runs before the server allocates anything for a request, and knows only the
//! peer's address. The capacity of the concurrency model is not checked here.

mod network;
mod peer_counts;
mod peers;
mod rate;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

pub use network::{Network, ParseNetworkError};
pub use rate::{ParseRateError, Rate};

use crate::{Address, Rejection};
pub(crate) use peer_counts::PeerCounts;
pub(crate) use peers::PeerKey;
use peers::Peers;
pub(crate) use rate::Bucket;

/// Limits on the peers that may connect or send a datagram. There are no limits by default. See
/// [`Builder::admission`](crate::Builder::admission).
/// [`ServerHandle::set_admission`](crate::ServerHandle::set_admission) changes the limits while the
/// server runs.
///
/// The limits apply to IP addresses, so only [`rate`](Self::rate) applies to clients of Unix
/// sockets. An IPv4 client of an IPv6 socket is identified by its IPv4 address. An IPv6 client is
/// identified by the first 64 bits of its address, because the client can choose the other 64 bits.
/// A client of a trusted proxy (`Builder::proxy_protocol`) is identified by the address that the
/// proxy reports.
///
/// ```
/// use socketserver::{Admission, Rate};
///
/// let admission = Admission::new()
///     .deny("10.0.0.66/32".parse()?)
///     .allow("10.0.0.0/8".parse()?)
///     .max_per_peer(20)
///     .rate_per_peer(Rate::per_second(5).burst(20));
/// # Ok::<(), socketserver::BoxError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    pub(crate) rules: Vec<(RuleAction, Network)>,
    pub(crate) max_active: Option<usize>,
    pub(crate) max_per_peer: Option<u32>,
    pub(crate) rate: Option<Rate>,
    pub(crate) rate_per_peer: Option<Rate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RuleAction {
    Allow,
    Deny,
}

impl Admission {
    /// Creates an `Admission` without restrictions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows a network, unless an earlier rule denies it. Once any `allow` rule exists, addresses
    /// that match no rule are denied.
    #[must_use]
    pub fn allow(mut self, network: Network) -> Self {
        self.rules.push((RuleAction::Allow, network));
        self
    }

    /// Denies a network, unless an earlier rule allows it.
    #[must_use]
    pub fn deny(mut self, network: Network) -> Self {
        self.rules.push((RuleAction::Deny, network));
        self
    }

    /// Sets the maximum number of active requests, including
    /// [suspended](crate::Connection::suspend_until_readable) connections. The concurrency model
    /// has its own limit, and this limit can only lower it. The model's overload policy applies to
    /// further requests. 0 counts as 1.
    #[must_use]
    pub fn max_active(mut self, max: usize) -> Self {
        self.max_active = Some(max.max(1));
        self
    }

    /// Sets the maximum number of active requests per peer. Further requests of the peer are
    /// rejected. 0 counts as 1.
    #[must_use]
    pub fn max_per_peer(mut self, max: u32) -> Self {
        self.max_per_peer = Some(max.max(1));
        self
    }

    /// Sets the maximum rate at which the server accepts requests. Further clients wait in the
    /// listen backlog.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = Some(rate);
        self
    }

    /// Sets the maximum rate at which the server accepts requests of one peer. Faster requests are
    /// rejected.
    #[must_use]
    pub fn rate_per_peer(mut self, rate: Rate) -> Self {
        self.rate_per_peer = Some(rate);
        self
    }

    fn allows(&self, address: std::net::IpAddr) -> bool {
        let first = self
            .rules
            .iter()
            .find(|(_, network)| network.contains(address));
        match first {
            Some((action, _)) => *action == RuleAction::Allow,
            None => !self
                .rules
                .iter()
                .any(|(action, _)| *action == RuleAction::Allow),
        }
    }

    pub(crate) fn counts_peers(&self) -> bool {
        self.max_per_peer.is_some() || self.rate_per_peer.is_some()
    }
}

/// The limits of one server and the state to enforce them.
#[derive(Debug, Default)]
pub(crate) struct AdmissionControl {
    limits: RwLock<Admission>,
    peers: Mutex<Peers>,
    all: Mutex<Bucket>,
}

/// A slot of one active request within the limit of its peer. Dropping the permit frees the slot.
pub struct PeerPermit {
    control: Arc<AdmissionControl>,
    peer: PeerKey,
}

impl AdmissionControl {
    pub(crate) fn set(&self, limits: Admission) {
        let mut current = self.limits.write().unwrap_or_else(PoisonError::into_inner);
        *current = limits;
    }

    pub(crate) fn limits(&self) -> RwLockReadGuard<'_, Admission> {
        self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the maximum number of active requests.
    pub(crate) fn max_active(&self) -> usize {
        self.limits().max_active.unwrap_or(usize::MAX)
    }

    /// Returns how many requests the server may accept now, or, if none, when it may accept the
    /// next request.
    pub(crate) fn pace(&self) -> Result<usize, Instant> {
        match self.limits().rate {
            None => Ok(usize::MAX),
            Some(rate) => lock(&self.all).pace(rate, Instant::now()),
        }
    }

    /// Admits or rejects a request.
    pub(crate) fn admit(self: &Arc<Self>, peer: &Address) -> Result<Option<PeerPermit>, Rejection> {
        self.admit_all(peer)?;
        self.count_peer(peer)
    }

    /// Admits or rejects the connection of a proxy. All clients of a proxy share its address, so
    /// the limits per peer do not apply to the proxy. They apply to the client once the PROXY
    /// header names it.
    #[cfg(feature = "proxy")]
    pub(crate) fn admit_proxy(&self, proxy: &Address) -> Result<(), Rejection> {
        self.admit_all(proxy)
    }

    /// Admits or rejects the client of an admitted proxy.
    #[cfg(feature = "proxy")]
    pub(crate) fn admit_client(
        self: &Arc<Self>,
        client: &Address,
    ) -> Result<Option<PeerPermit>, Rejection> {
        self.check_rules(client)?;
        self.count_peer(client)
    }

    fn admit_all(&self, peer: &Address) -> Result<(), Rejection> {
        self.check_rules(peer)?;
        if let Some(rate) = self.limits().rate {
            lock(&self.all).take(rate, Instant::now());
        }
        Ok(())
    }

    fn check_rules(&self, peer: &Address) -> Result<(), Rejection> {
        let limits = self.limits();
        match ip(peer) {
            Some(ip) if !limits.rules.is_empty() && !limits.allows(ip) => Err(Rejection::Denied),
            _ => Ok(()),
        }
    }

    fn count_peer(self: &Arc<Self>, peer: &Address) -> Result<Option<PeerPermit>, Rejection> {
        let limits = self.limits();
        let Some(ip) = ip(peer).filter(|_| limits.counts_peers()) else {
            return Ok(None);
        };
        let peer = lock(&self.peers).enter(PeerKey::of(ip), &limits, Instant::now())?;
        Ok(Some(PeerPermit {
            control: self.clone(),
            peer,
        }))
    }

    /// Counts an active request that was admitted while peers were not counted.
    pub(crate) fn count_live(self: &Arc<Self>, peer: &Address) -> Option<PeerPermit> {
        let limits = self.limits();
        let ip = ip(peer).filter(|_| limits.counts_peers())?;
        let peer = lock(&self.peers).count(PeerKey::of(ip), &limits, Instant::now());
        Some(PeerPermit {
            control: self.clone(),
            peer,
        })
    }
}

impl PeerKey {
    /// Returns the key of a peer, or `None` if the peer has no IP address.
    pub(crate) fn of_peer(peer: &Address) -> Option<Self> {
        ip(peer).map(Self::of)
    }
}

fn ip(peer: &Address) -> Option<std::net::IpAddr> {
    Some(peer.as_inet()?.ip().to_canonical())
}

impl Drop for PeerPermit {
    fn drop(&mut self) {
        lock(&self.control.peers).leave(self.peer);
    }
}

impl fmt::Debug for PeerPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerPermit").field(&self.peer).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No application code runs while one of these locks is held, so a poisoned lock is consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_matching_rule_decides() {
        let net = |text: &str| text.parse::<Network>().unwrap();
        let allows = |admission: &Admission, text: &str| admission.allows(text.parse().unwrap());
        let open = Admission::new();
        assert!(allows(&open, "1.2.3.4"));
        let deny_only = Admission::new().deny(net("10.0.0.0/8"));
        assert!(allows(&deny_only, "1.2.3.4") && allows(&deny_only, "::1"));
        assert!(!allows(&deny_only, "10.9.9.9"));
        let mixed = Admission::new()
            .deny(net("10.0.0.66"))
            .allow(net("10.0.0.0/8"))
            .deny(net("10.1.0.0/16"));
        assert!(allows(&mixed, "10.0.0.65") && allows(&mixed, "10.1.2.3"));
        assert!(!allows(&mixed, "10.0.0.66") && !allows(&mixed, "11.0.0.1"));
        assert!(!allows(&mixed, "::1"));
    }
}
