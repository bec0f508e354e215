//! The addresses of the datagram sockets that this process serves, so that none of them answers
//! another one, or itself.
//!
//! The source of a datagram is what its sender has written there. If it is a server of this process,
//! the answer would come in as the next question, and be answered. No server can tell that by its own
//! address only, so the table is the process's.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::Address;

static SERVED: RwLock<Vec<Arc<Served>>> = RwLock::new(Vec::new());
/// How often the table has changed. Sockets keep a copy, as they look at it for each datagram.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// The address of one socket.
#[derive(Debug)]
struct Served {
    address: Address,
    /// A wildcard of IPv6 that takes IPv4 as well.
    takes_ipv4: bool,
}

impl Served {
    /// Whether what is sent to `peer` would come in here.
    fn is_reached_by(&self, peer: &Address) -> bool {
        let (own, peer) = match (&self.address, peer) {
            (Address::Inet(own), Address::Inet(peer)) => (own, peer),
            // A name that was given to `bind(2)`: the answer would go there by the same name.
            (own, peer) => return own == peer && !peer.is_unnamed(),
        };
        if own.port() != peer.port() {
            return false;
        }
        let ip = peer.ip().to_canonical();
        if !own.ip().is_unspecified() {
            return own.ip().to_canonical() == ip && is_same_link(own, peer);
        }
        let is_family_taken = own.is_ipv4() == ip.is_ipv4() || (self.takes_ipv4 && ip.is_ipv4());
        is_family_taken && is_of_this_machine(ip, peer)
    }
}

/// Two addresses of one link only may be the same on two links.
fn is_same_link(a: &SocketAddr, b: &SocketAddr) -> bool {
    match (a, b) {
        (SocketAddr::V6(a), SocketAddr::V6(b)) => {
            a.scope_id() == b.scope_id() || a.scope_id() == 0 || b.scope_id() == 0
        }
        _ => true,
    }
}

/// Whether the address is one of this machine's. Asked for datagrams only whose source port is that
/// of a server on all addresses.
///
/// The kernel sends to an address of its own from that same address, so a socket that is connected to
/// it, which sends nothing, has it on both ends. Where that cannot be found out (no descriptor is
/// left) it counts as one: clients seldom have the server's port.
fn is_of_this_machine(ip: IpAddr, peer: &SocketAddr) -> bool {
    if ip.is_loopback() {
        return true;
    }
    let (family, to) = match (ip, peer) {
        (IpAddr::V6(_), SocketAddr::V6(_)) => (AddressFamily::INET6, *peer),
        (ip, _) => (AddressFamily::INET, SocketAddr::new(ip, peer.port())),
    };
    let Ok(probe) = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
    else {
        return true;
    };
    // No way there: then no answer goes there either.
    if rustix::net::connect(&probe, &to).is_err() {
        return false;
    }
    match rustix::net::getsockname(&probe).map(SocketAddr::try_from) {
        Ok(Ok(own)) => own.ip() == ip,
        _ => true,
    }
}

/// One socket's place in the table, and its copy of it.
#[derive(Debug)]
pub(super) struct OwnAddresses {
    here: Arc<Served>,
    known: Vec<Arc<Served>>,
    known_at: u64,
}

impl OwnAddresses {
    /// Enters a socket that is bound.
    pub(super) fn enter(socket: &impl AsFd, address: Address) -> Self {
        let is_ipv6 = address.as_inet().is_some_and(|inet| inet.is_ipv6());
        let here = Arc::new(Served {
            address,
            takes_ipv4: is_ipv6 && sockopt::ipv6_v6only(socket).is_ok_and(|only| !only),
        });
        let mut served = SERVED.write().unwrap_or_else(PoisonError::into_inner);
        served.push(here.clone());
        CHANGES.fetch_add(1, Ordering::Release);
        Self {
            here,
            known: Vec::new(),
            known_at: 0,
        }
    }

    /// Whether an answer to `peer` would come in at a server of this process.
    pub(super) fn include(&mut self, peer: &Address) -> bool {
        let changes = CHANGES.load(Ordering::Acquire);
        if self.known_at != changes {
            let served = SERVED.read().unwrap_or_else(PoisonError::into_inner);
            self.known.clone_from(&served);
            self.known_at = changes;
        }
        self.known.iter().any(|served| served.is_reached_by(peer))
    }
}

impl Drop for OwnAddresses {
    fn drop(&mut self) {
        let mut served = SERVED.write().unwrap_or_else(PoisonError::into_inner);
        served.retain(|other| !Arc::ptr_eq(other, &self.here));
        CHANGES.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(address: &str, takes_ipv4: bool) -> Served {
        Served {
            address: Address::Inet(address.parse().unwrap()),
            takes_ipv4,
        }
    }

    #[test]
    fn every_way_to_write_an_own_address_is_recognised() {
        for (own, takes_ipv4, peer, expected) in [
            ("127.0.0.1:7", false, "127.0.0.1:7", true),
            ("127.0.0.1:7", false, "127.0.0.1:8", false),
            ("127.0.0.1:7", false, "127.0.0.2:7", false),
            ("127.0.0.1:7", false, "[::ffff:127.0.0.1]:7", true),
            ("[::ffff:127.0.0.1]:7", false, "127.0.0.1:7", true),
            ("0.0.0.0:7", false, "127.0.0.9:7", true),
            ("0.0.0.0:7", false, "[::ffff:127.0.0.9]:7", true),
            ("0.0.0.0:7", false, "[::1]:7", false),
            ("0.0.0.0:7", false, "192.0.2.1:7", false),
            ("[::]:7", true, "[::1]:7", true),
            ("[::]:7", true, "[::ffff:127.0.0.1]:7", true),
            ("[::]:7", true, "127.0.0.1:7", true),
            ("[::]:7", false, "127.0.0.1:7", false),
            ("[::]:7", true, "[2001:db8::1]:7", false),
            ("[fe80::1%2]:7", false, "[fe80::1%2]:7", true),
            ("[fe80::1%2]:7", false, "[fe80::1%3]:7", false),
        ] {
            let found =
                served(own, takes_ipv4).is_reached_by(&Address::Inet(peer.parse().unwrap()));
            assert_eq!(found, expected, "{own} {takes_ipv4} {peer}");
        }
    }

    #[test]
    fn an_address_of_an_interface_is_this_machines() {
        let own = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        if own.connect("192.0.2.1:9").is_err() {
            return; // no interface but the loopback one
        }
        let ip = own.local_addr().unwrap().ip();
        let peer = SocketAddr::new(ip, 9);
        assert!(is_of_this_machine(ip, &peer), "{ip}");
    }

    #[test]
    fn a_socket_that_is_gone_is_forgotten() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = Address::Inet(socket.local_addr().unwrap());
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let elsewhere = Address::Inet(other.local_addr().unwrap());
        let mut looks = OwnAddresses::enter(&other, elsewhere.clone());
        assert!(looks.include(&elsewhere));
        assert!(!looks.include(&address));
        let entered = OwnAddresses::enter(&socket, address.clone());
        assert!(looks.include(&address));
        drop(entered);
        assert!(!looks.include(&address));
    }
}
