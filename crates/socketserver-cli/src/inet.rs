//! IP addresses in text form: host names, numbers, and IPv6 zones by interface name, which the
//! standard library does not parse.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

/// Returns all addresses of `HOST:PORT` without duplicates, in the order of the system's resolver.
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

/// Splits `[fe80::1%eth0]:80` into its parts.
fn with_zone(address: &str) -> Option<(Ipv6Addr, &str, u16)> {
    let (host, port) = address.strip_prefix('[')?.rsplit_once("]:")?;
    let (ip, zone) = host.split_once('%')?;
    Some((ip.parse().ok()?, zone, port.parse().ok()?))
}

/// Returns the number of the interface of a zone. In a URL the `%` is written `%25`: RFC 6874,
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

/// Returns true if only clients of this machine can reach a server at this address. Unix sockets
/// have no IP address.
pub(crate) fn is_local(address: Option<SocketAddr>) -> bool {
    address.is_none_or(|address| address.ip().to_canonical().is_loopback())
}

/// Returns the addresses to bind for `address`. Omits addresses that this machine lacks, such as
/// IPv6 addresses without IPv6. Port 0 becomes one free port for all addresses.
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
            tracing::warn!(address = %unavailable.ip(), "{address}: this machine does not have the address; skipping it");
        }
    }
    if found.iter().all(|address| address.port() == 0) {
        let port = free_port(&found, is_udp).context("no port is free on all addresses")?;
        found.iter_mut().for_each(|address| address.set_port(port));
    }
    Ok(found)
}

/// The maximum number of ports to try, because a free port of the first address may be in use on
/// another.
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
        // The socket is held until all addresses are tried.
        let (port, _held) = bound(*first).ok()?;
        let is_free = |address: &SocketAddr| bound(SocketAddr::new(address.ip(), port)).is_ok();
        others.iter().all(is_free).then_some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_up_accepts_zones_by_name_and_number() {
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
    fn look_up_accepts_addresses_without_a_zone() {
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
    fn to_bind_finds_one_free_port_for_all_addresses() {
        let addresses = [
            "127.0.0.1:0".parse().unwrap(),
            "127.0.0.2:0".parse().unwrap(),
        ];
        for is_udp in [false, true] {
            assert!(free_port(&addresses, is_udp).unwrap() > 0);
        }
    }
}
