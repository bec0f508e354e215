//! Addresses of IP as people write them: names, numbers, and zones of IPv6 by the names of their
//! interfaces, which the standard library does not read.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

/// All addresses of `HOST:PORT`, each once, in the order of the system's resolver.
pub(crate) fn look_up(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Some((ip, zone, port)) = with_zone(address) {
        let zone = index_of(zone)?;
        return Ok(vec![SocketAddrV6::new(ip, port, 0, zone).into()]);
    }
    let mut found = Vec::new();
    for address in address.to_socket_addrs()? {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no address",
        ));
    }
    Ok(found)
}

/// The parts of `[fe80::1%eth0]:80`.
fn with_zone(address: &str) -> Option<(Ipv6Addr, &str, u16)> {
    let (host, port) = address.strip_prefix('[')?.rsplit_once("]:")?;
    let (ip, zone) = host.split_once('%')?;
    Some((ip.parse().ok()?, zone, port.parse().ok()?))
}

/// The number of the interface that a zone names. In a URL the `%` is written `%25`: RFC 6874,
/// section 2.
fn index_of(zone: &str) -> io::Result<u32> {
    let any = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let written = [Some(zone), zone.strip_prefix("25")];
    let found = written.into_iter().flatten().find_map(|zone| {
        if let Ok(index) = netdevice::name_to_index(&any, zone) {
            return Some(index);
        }
        let index = zone.parse().ok()?;
        netdevice::index_to_name(&any, index).ok().map(|_| index)
    });
    found.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("no interface has the name or the number {zone}; `ip link` lists them"),
        )
    })
}

/// What a server on `address` is to be bound to: all addresses of a name but those that this machine
/// has not, such as the one of IPv6 where there is no IPv6. Port 0 is one free port for all of them.
pub(crate) fn to_bind(address: &str, is_udp: bool) -> anyhow::Result<Vec<SocketAddr>> {
    let found = look_up(address).with_context(|| format!("bad address {address}"));
    let mut found = found?;
    if found.len() == 1 {
        return Ok(found);
    }
    let unavailable: Vec<_> = (found.iter().copied())
        .filter(|address| UdpSocket::bind((address.ip(), 0)).is_err())
        .collect();
    if unavailable.len() < found.len() {
        found.retain(|address| !unavailable.contains(address));
        for unavailable in unavailable {
            tracing::warn!(address = %unavailable.ip(), "{address}: no address of this machine, and left out");
        }
    }
    if found.iter().all(|address| address.port() == 0) {
        let port =
            free_port(&found, is_udp).context("there is no port that all addresses have free")?;
        found.iter_mut().for_each(|address| address.set_port(port));
    }
    Ok(found)
}

/// How often another port is tried, as the first address's may not be free on the others.
const ATTEMPTS: usize = 100;

fn free_port(addresses: &[SocketAddr], is_udp: bool) -> Option<u16> {
    let (first, others) = addresses.split_first()?;
    let bound = |address: SocketAddr| -> io::Result<(u16, OwnedFd)> {
        if is_udp {
            let socket = UdpSocket::bind(address)?;
            Ok((socket.local_addr()?.port(), socket.into()))
        } else {
            let socket = TcpListener::bind(address)?;
            Ok((socket.local_addr()?.port(), socket.into()))
        }
    };
    (0..ATTEMPTS).find_map(|_| {
        // Held until all are tried.
        let (port, _held) = bound(*first).ok()?;
        let is_free = |address: &SocketAddr| bound(SocketAddr::new(address.ip(), port)).is_ok();
        others.iter().all(is_free).then_some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_read_by_name_and_by_number() {
        let of = |text: &str| look_up(text).unwrap()[0];
        let by_name = of("[::1%lo]:80");
        assert_eq!(by_name, of("[::1%25lo]:80"), "as in a URL");
        assert_eq!(by_name, of("[::1%1]:80"), "lo is the first");
        assert_eq!(of("[fe80::1%lo]:80").to_string(), "[fe80::1%1]:80");
        let error = look_up("[fe80::1%nosuch0]:80").unwrap_err().to_string();
        assert!(
            error.contains("nosuch0") && error.contains("ip link"),
            "{error}"
        );
    }

    #[test]
    fn addresses_without_a_zone_are_read_as_ever() {
        assert_eq!(look_up("[::1]:80").unwrap(), ["[::1]:80".parse().unwrap()]);
        let localhost = look_up("localhost:80").unwrap();
        assert!(localhost.contains(&"127.0.0.1:80".parse().unwrap()));
        assert_eq!(
            localhost.iter().filter(|a| a.is_ipv4()).count(),
            1,
            "each once"
        );
    }

    #[test]
    fn one_free_port_is_found_for_several_addresses() {
        let addresses = [
            "127.0.0.1:0".parse().unwrap(),
            "127.0.0.2:0".parse().unwrap(),
        ];
        for is_udp in [false, true] {
            assert!(free_port(&addresses, is_udp).unwrap() > 0);
        }
    }
}
