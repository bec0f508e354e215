//! A range of IP addresses in CIDR notation.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

/// A range of IP addresses: `10.0.0.0/8`, `2001:db8::/32`, `127.0.0.1`, or `all`, in CIDR notation
/// ([RFC 4632](https://www.rfc-editor.org/rfc/rfc4632)). Bits beyond the prefix are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(Option<IpNet>);

/// The error of parsing a [`Network`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network; write 10.0.0.0/8, 2001:db8::/32, 127.0.0.1 or all")]
pub struct ParseNetworkError(String);

impl Network {
    /// Returns the network that contains all addresses.
    #[must_use]
    pub const fn all() -> Self {
        Self(None)
    }

    /// Returns true if the network contains the address. An IPv4-mapped IPv6 address
    /// (`::ffff:10.0.0.1`) counts as IPv4, because IPv6 sockets report IPv4 clients in this form.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0
            .is_none_or(|network| network.contains(&address.to_canonical()))
    }
}

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        if text == "all" {
            return Ok(Self::all());
        }
        let network = match text.parse::<IpNet>() {
            Ok(network) => Some(network),
            Err(_) => text.parse::<IpAddr>().ok().map(IpNet::from),
        };
        let network = network
            .ok_or_else(|| ParseNetworkError(text.into()))?
            .trunc();
        Ok(Self(Some(canonical(network))))
    }
}

/// Converts a network of IPv4-mapped IPv6 addresses to an IPv4 network.
fn canonical(network: IpNet) -> IpNet {
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
        && let Ok(v4) = Ipv4Net::new(v4, prefix)
    {
        return IpNet::V4(v4);
    }
    network
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(network) => network.fmt(f),
            None => f.write_str("all"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        network
            .parse::<Network>()
            .unwrap()
            .contains(address.parse().unwrap())
    }

    #[test]
    fn network_contains_its_addresses() {
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("10.1.2.3/8", "10.9.9.9"), "bits beyond the prefix");
        assert!(contains("127.0.0.1", "127.0.0.1") && !contains("127.0.0.1", "127.0.0.2"));
        assert!(contains("2001:db8::/32", "2001:db8:1::1") && !contains("::/0", "1.2.3.4"));
        assert!(contains("0.0.0.0/0", "1.2.3.4") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("all", "::1") && contains("all", "1.2.3.4"));
    }

    #[test]
    fn mapped_addresses_count_as_ipv4() {
        assert!(contains("10.0.0.0/8", "::ffff:10.0.0.1"));
        assert!(contains("::ffff:10.0.0.0/104", "10.0.0.1"));
        assert!(
            !contains("::/0", "::ffff:10.0.0.1"),
            "a mapped address is not IPv6"
        );
    }

    #[test]
    fn invalid_network_is_rejected_with_examples() {
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0",
            "localhost",
            "::/129",
            "1.2.3.4/",
            "ALL",
        ] {
            let error = text.parse::<Network>().unwrap_err().to_string();
            assert!(error.contains("10.0.0.0/8"), "{error}");
        }
        assert_eq!(
            "10.1.2.3/8".parse::<Network>().unwrap().to_string(),
            "10.0.0.0/8"
        );
    }
}
