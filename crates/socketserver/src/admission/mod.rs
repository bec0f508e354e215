//! Who may come in, how many from one address, and how fast.
//!
//! Asked with nothing but the peer's address, before anything is made for a request. What the
//! concurrency model has room for is not decided here.

mod network;
mod peers;
mod rate;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

pub use network::{Network, ParseNetworkError};
pub use rate::{ParseRateError, Rate};

use crate::{Address, Rejection};
pub(crate) use peers::PeerKey;
use peers::Peers;
pub(crate) use rate::Bucket;

/// Limits on who may connect or send a datagram; none by default. See
/// [`Builder::admission`](crate::Builder::admission), and
/// [`ServerHandle::set_admission`](crate::ServerHandle::set_admission) to change them while serving.
///
/// They concern addresses, so clients of Unix sockets are subject to [`rate`](Self::rate) only. An
/// IPv4 client of an IPv6 socket is known by its IPv4 address. An IPv6 client is known by the first
/// 64 bits of its address, as the rest is its own to choose. Clients of a trusted
/// proxy (`Builder::proxy_protocol`) are known by the addresses that it tells.
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
    /// Everybody, in any number.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets addresses in that no earlier rule denies. Once there is such a rule, addresses that no
    /// rule names are denied.
    #[must_use]
    pub fn allow(mut self, network: Network) -> Self {
        self.rules.push((RuleAction::Allow, network));
        self
    }

    /// Turns addresses away that no earlier rule allows.
    #[must_use]
    pub fn deny(mut self, network: Network) -> Self {
        self.rules.push((RuleAction::Deny, network));
        self
    }

    /// How many requests may be live at once at all, those that are
    /// [kept alive](crate::Connection::suspend_until_readable) included. The concurrency model has a limit of its
    /// own, and its policy says what happens to the next one; this one can only be lower. 0 is taken
    /// as 1.
    #[must_use]
    pub fn max_active(mut self, max: usize) -> Self {
        self.max_active = Some(max.max(1));
        self
    }

    /// How many requests of one peer may be live at once; more are refused. 0 is taken as 1.
    #[must_use]
    pub fn max_per_peer(mut self, max: u32) -> Self {
        self.max_per_peer = Some(max.max(1));
        self
    }

    /// How fast requests are taken on at all. Clients that come faster wait, in the kernel's queue.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = Some(rate);
        self
    }

    /// How fast requests of one peer are taken on; what comes faster is refused.
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

/// One server's limits, and what it has let in.
#[derive(Debug, Default)]
pub(crate) struct AdmissionControl {
    limits: RwLock<Admission>,
    peers: Mutex<Peers>,
    all: Mutex<Bucket>,
}

/// A live request's share of its peer's limit, given back when it is dropped.
pub struct PeerPermit {
    control: Arc<AdmissionControl>,
    peer: PeerKey,
}

impl AdmissionControl {
    pub(crate) fn set(&self, limits: Admission) {
        let mut present = self.limits.write().unwrap_or_else(PoisonError::into_inner);
        *present = limits;
    }

    pub(crate) fn limits(&self) -> RwLockReadGuard<'_, Admission> {
        self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests may be live at once.
    pub(crate) fn max_active(&self) -> usize {
        self.limits().max_active.unwrap_or(usize::MAX)
    }

    /// When the next request may be taken on, if not now; and how many may, if so.
    pub(crate) fn pace(&self) -> Result<usize, Instant> {
        match self.limits().rate {
            None => Ok(usize::MAX),
            Some(rate) => lock(&self.all).pace(rate, Instant::now()),
        }
    }

    /// Decides about one request.
    pub(crate) fn admit(self: &Arc<Self>, peer: &Address) -> Result<Option<PeerPermit>, Rejection> {
        self.admit_any(peer)?;
        self.count_in(peer)
    }

    /// Decides about a request that comes by a proxy. Who the client is, and what that means, will
    /// be seen: all clients of a proxy have its address, so that it is not limited as a peer.
    #[cfg(feature = "proxy")]
    pub(crate) fn admit_proxy(&self, proxy: &Address) -> Result<(), Rejection> {
        self.admit_any(proxy)
    }

    /// Decides about the client of a proxy that was admitted.
    #[cfg(feature = "proxy")]
    pub(crate) fn admit_client(
        self: &Arc<Self>,
        client: &Address,
    ) -> Result<Option<PeerPermit>, Rejection> {
        self.check_rules(client)?;
        self.count_in(client)
    }

    fn admit_any(&self, peer: &Address) -> Result<(), Rejection> {
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

    fn count_in(self: &Arc<Self>, peer: &Address) -> Result<Option<PeerPermit>, Rejection> {
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

    /// Counts a request that is live and was let in when nobody counted.
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
    /// `None` for a peer without an IP address.
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
        f.debug_tuple("Ticket").field(&self.peer).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No application code runs while one of these is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_names_an_address_decides() {
        let net = |text: &str| text.parse::<Network>().unwrap();
        let allows = |admission: &Admission, text: &str| admission.allows(text.parse().unwrap());
        let open = Admission::new();
        assert!(allows(&open, "1.2.3.4"));
        let denying = Admission::new().deny(net("10.0.0.0/8"));
        assert!(allows(&denying, "1.2.3.4") && allows(&denying, "::1"));
        assert!(!allows(&denying, "10.9.9.9"));
        let mixed = Admission::new()
            .deny(net("10.0.0.66"))
            .allow(net("10.0.0.0/8"))
            .deny(net("10.1.0.0/16"));
        assert!(allows(&mixed, "10.0.0.65") && allows(&mixed, "10.1.2.3"));
        assert!(!allows(&mixed, "10.0.0.66") && !allows(&mixed, "11.0.0.1"));
        assert!(!allows(&mixed, "::1"));
    }
}
