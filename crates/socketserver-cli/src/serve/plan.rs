//! The addresses to bind for each endpoint, looked up before anything is bound. A name may have
//! several addresses, and two endpoints of one command may overlap.

use std::net::SocketAddr;

use anyhow::Context;
use socketserver::{BindError, DualStack};

use super::bind::Inet;
use crate::endpoint::Endpoint;
use crate::inet;

/// The addresses of all endpoints of a command.
pub(crate) struct Plan(Vec<Planned>);

struct Planned {
    endpoint: Endpoint,
    /// The IP addresses; empty if the endpoint has none.
    addresses: Vec<SocketAddr>,
}

impl Plan {
    /// # Errors
    /// Returns an error if a name has no address.
    pub(crate) fn of(endpoints: &[&Endpoint]) -> anyhow::Result<Self> {
        let planned = endpoints.iter().map(|&endpoint| {
            let addresses = match endpoint.host_and_port() {
                Some(address) => inet::to_bind(address, endpoint.is_datagram())
                    .with_context(|| format!("cannot start {endpoint}"))?,
                None => Vec::new(),
            };
            Ok(Planned {
                endpoint: endpoint.clone(),
                addresses,
            })
        });
        Ok(Self(planned.collect::<anyhow::Result<_>>()?))
    }

    /// Returns the addresses to bind for the endpoint with this number. `[::]` leaves IPv4 to
    /// `0.0.0.0` if the command has both.
    pub(crate) fn addresses(&self, number: usize) -> Vec<Inet> {
        let with_stack = self.0[number].addresses.iter().map(|&address| {
            let is_taken = address.port() != 0
                && self.like(number).any(|(_, other)| {
                    let is_any = other.is_ipv4() && other.ip().is_unspecified();
                    is_any && other.port() == address.port()
                });
            Inet {
                address,
                dual_stack: match is_taken {
                    true => DualStack::Disabled,
                    false => DualStack::Enabled,
                },
            }
        });
        with_stack.collect()
    }

    /// Adds the name of the other endpoint if an address is in use by another endpoint of this
    /// command.
    pub(crate) fn explain(&self, error: anyhow::Error, number: usize) -> anyhow::Error {
        let is_in_use = matches!(error.downcast_ref(), Some(BindError::AddressInUse { .. }));
        let own = &self.0[number].addresses;
        let other = (self.like(number)).find(|(_, at)| own.iter().any(|own| overlap(*own, **at)));
        match other {
            Some((other, _)) if is_in_use => anyhow::anyhow!(
                "{other}, on which this command also listens, takes the same address or a part \
                 of it; leave one of the two out, or give them different ports"
            ),
            _ => error,
        }
    }

    /// Returns the addresses of all other endpoints that use ports of the same protocol.
    fn like(&self, number: usize) -> impl Iterator<Item = (&Endpoint, &SocketAddr)> {
        let is_udp = self.0[number].endpoint.is_datagram();
        (self.0.iter().enumerate())
            .filter(move |(other, it)| *other != number && it.endpoint.is_datagram() == is_udp)
            .flat_map(|(_, it)| it.addresses.iter().map(|at| (&it.endpoint, at)))
    }
}

/// Returns true if two sockets cannot have both addresses. An IPv6 wildcard includes IPv4.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |a: SocketAddr, b: SocketAddr| {
        let is_wildcard = a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4());
        is_wildcard || a.ip().to_canonical() == b.ip().to_canonical()
    };
    a.port() == b.port() && a.port() != 0 && (covers(a, b) || covers(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_of_both_families_share_a_port_and_other_overlaps_are_named() {
        let endpoints = [
            "tcp://[::]:7",
            "tcp://0.0.0.0:7",
            "udp://[::]:7",
            "tcp://127.0.0.1:7",
        ];
        let endpoints = endpoints.map(|text| text.parse::<Endpoint>().unwrap());
        let plan = Plan::of(&endpoints.iter().collect::<Vec<_>>()).unwrap();
        let stack = |index: usize| plan.addresses(index)[0].dual_stack;
        assert_eq!(stack(0), DualStack::Disabled);
        assert_eq!(
            stack(2),
            DualStack::Enabled,
            "UDP and TCP ports are independent"
        );
        let in_use = || {
            anyhow::Error::from(BindError::AddressInUse {
                address: "it".into(),
                advice: "stop it",
            })
        };
        let message = plan.explain(in_use(), 3).to_string();
        assert!(message.starts_with("tcp://"), "{message}");
        let message = plan.explain(in_use(), 2).to_string();
        assert!(
            message.contains("stop it"),
            "no endpoint of this command has the address: {message}"
        );
    }

    #[test]
    fn overlapping_addresses_conflict() {
        for (a, b, expected) in [
            ("0.0.0.0:7", "127.0.0.1:7", true),
            ("[::]:7", "127.0.0.1:7", true),
            ("127.0.0.1:7", "[::]:7", true),
            ("[::]:7", "[::1]:7", true),
            ("0.0.0.0:7", "[::1]:7", false),
            ("127.0.0.1:7", "127.0.0.2:7", false),
            ("127.0.0.1:7", "127.0.0.1:8", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            let (first, second) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(overlap(first, second), expected, "{a} {b}");
        }
    }
}
