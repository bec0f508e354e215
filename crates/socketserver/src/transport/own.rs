//! The addresses of the datagram sockets of this process, so that no server replies to another or
//! to itself.
//!
//! The source of a datagram can be forged. If the source is a server of this process, the reply
//! would arrive there as a request and be answered again. A server cannot detect this from its own
//! address alone, so the table is global in the process.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::Address;

static SERVED: RwLock<Vec<Arc<Served>>> = RwLock::new(Vec::new());
/// Version of the table. Each socket keeps a copy, because it checks the table for each datagram.
static VERSION: AtomicU64 = AtomicU64::new(0);

/// The address of one socket.
#[derive(Debug)]
struct Served {
    address: Address,
    /// True for an IPv6 wildcard address that also receives IPv4.
    takes_ipv4: bool,
}

impl Served {
    /// Returns true if a datagram to `peer` would arrive at this socket.
    fn is_reached_by(&self, peer: &Address) -> bool {
        let (own, peer) = match (&self.address, peer) {
            (Address::Inet(own), Address::Inet(peer)) => (own, peer),
            // A name that was passed to `bind(2)`: a reply would use the same name.
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

/// Returns true if both addresses are on the same link. A link-local address can exist on several
/// links.
fn is_same_link(a: &SocketAddr, b: &SocketAddr) -> bool {
    match (a, b) {
        (SocketAddr::V6(a), SocketAddr::V6(b)) => {
            a.scope_id() == b.scope_id() || a.scope_id() == 0 || b.scope_id() == 0
        }
        _ => true,
    }
}

/// Returns true if the address belongs to this machine. Called only for datagrams whose source port
/// is the port of a server on all addresses.
///
/// The kernel uses a local destination address as the source address. A socket connected to a local
/// address, which sends nothing, therefore has that address at both ends. If no descriptor is
/// available for this check, the address counts as local: clients seldom use the server's port.
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
    // Without a route, no reply reaches the address either.
    if rustix::net::connect(&probe, &to).is_err() {
        return false;
    }
    match rustix::net::getsockname(&probe).map(SocketAddr::try_from) {
        Ok(Ok(own)) => own.ip() == ip,
        _ => true,
    }
}

/// The entry of one socket in the table, and its copy of the table.
#[derive(Debug)]
pub(super) struct OwnAddresses {
    entry: Arc<Served>,
    copy: Vec<Arc<Served>>,
    copy_version: u64,
}

impl OwnAddresses {
    /// Adds a bound socket to the table.
    pub(super) fn register(socket: &impl AsFd, address: Address) -> Self {
        let is_ipv6 = address.as_inet().is_some_and(|inet| inet.is_ipv6());
        let entry = Arc::new(Served {
            address,
            takes_ipv4: is_ipv6 && sockopt::ipv6_v6only(socket).is_ok_and(|only| !only),
        });
        let mut served = SERVED.write().unwrap_or_else(PoisonError::into_inner);
        served.push(entry.clone());
        VERSION.fetch_add(1, Ordering::Release);
        Self {
            entry,
            copy: Vec::new(),
            copy_version: 0,
        }
    }

    /// Returns true if a reply to `peer` would arrive at a server of this process.
    pub(super) fn include(&mut self, peer: &Address) -> bool {
        let version = VERSION.load(Ordering::Acquire);
        if self.copy_version != version {
            let served = SERVED.read().unwrap_or_else(PoisonError::into_inner);
            self.copy.clone_from(&served);
            self.copy_version = version;
        }
        self.copy.iter().any(|served| served.is_reached_by(peer))
    }
}

impl Drop for OwnAddresses {
    fn drop(&mut self) {
        let mut served = SERVED.write().unwrap_or_else(PoisonError::into_inner);
        served.retain(|other| !Arc::ptr_eq(other, &self.entry));
        VERSION.fetch_add(1, Ordering::Release);
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
    fn own_address_is_recognised_in_every_form() {
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
    fn interface_address_belongs_to_this_machine() {
        let own = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        if own.connect("192.0.2.1:9").is_err() {
            return; // no interface but the loopback one
        }
        let ip = own.local_addr().unwrap().ip();
        let peer = SocketAddr::new(ip, 9);
        assert!(is_of_this_machine(ip, &peer), "{ip}");
    }

    #[test]
    fn closed_socket_is_removed_from_the_table() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = Address::Inet(socket.local_addr().unwrap());
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let other_address = Address::Inet(other.local_addr().unwrap());
        let mut table = OwnAddresses::register(&other, other_address.clone());
        assert!(table.include(&other_address));
        assert!(!table.include(&address));
        let entry = OwnAddresses::register(&socket, address.clone());
        assert!(table.include(&address));
        drop(entry);
        assert!(!table.include(&address));
    }
}
