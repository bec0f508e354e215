//! The target of the load. Its address is looked up once and must be on this machine unless that is
//! overridden. Connections are opened without blocking.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with, sockopt,
};
use socketserver::rustls::client::Resumption;
use socketserver::rustls::pki_types::ServerName;
use socketserver::rustls::{ClientConfig, ClientConnection};

use crate::cli::UsageError;
use crate::endpoint::Endpoint;
use crate::tls::ClientTls;

use super::client_socket::ClientSocket;
use super::failure::{Failure, Kind};

#[derive(Debug)]
pub(super) struct Target {
    address: Address,
    kind: SocketType,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

#[derive(Debug)]
enum Address {
    Inet(SocketAddr),
    Unix(SocketAddrUnix),
}

/// The result of opening a connection.
pub(super) enum Opened {
    /// The connection is established, or will be once it is writable.
    ClientSocket { link: ClientSocket, is_there: bool },
    /// The listener's backlog is full. Only Unix sockets report this: connect(2), `EAGAIN`.
    NotYet,
}

impl Target {
    pub(super) fn find(
        endpoint: &Endpoint,
        tls: &ClientTls,
        allow_remote: bool,
    ) -> anyhow::Result<Self> {
        let (address, kind) = match endpoint {
            Endpoint::Tcp(_) | Endpoint::Tls(_) | Endpoint::Udp(_) => {
                let found = endpoint.look_up();
                let found = found.with_context(|| format!("cannot look up {endpoint}"))?;
                let elsewhere = |address: &&SocketAddr| {
                    let ip = address.ip().to_canonical();
                    // The unspecified address also leads to this machine: ip(7).
                    !ip.is_loopback() && !ip.is_unspecified()
                };
                if let Some(address) = found.iter().find(elsewhere)
                    && !allow_remote
                {
                    return Err(UsageError(format!(
                        "{endpoint} is {}, which is not a loopback address: if you may put load on \
                         that machine and on the network to it, add --allow-remote",
                        address.ip()
                    ))
                    .into());
                }
                if matches!(endpoint, Endpoint::Udp(_)) {
                    let first = found.first().context("the name has no address")?;
                    (Address::Inet(*first), SocketType::DGRAM)
                } else {
                    (Address::Inet(reachable(&found)?), SocketType::STREAM)
                }
            }
            Endpoint::Unix(path) => (Address::Unix(unix(path)?), SocketType::STREAM),
            Endpoint::Unixgram(path) => (Address::Unix(unix(path)?), SocketType::DGRAM),
            Endpoint::Http(_) | Endpoint::Https(_) => {
                return Err(UsageError(format!(
                    "{endpoint} is for browsers, and load does not support HTTP: use wrk, oha or h2load"
                ))
                .into());
            }
            Endpoint::Inherited(_) => {
                bail!(
                    "only a server can use inherited sockets; give the address on which it listens"
                )
            }
        };
        let tls = match endpoint {
            Endpoint::Tls(address) => {
                let (mut config, name) = tls.client(address)?;
                // Each connection represents a separate client, which performs a full handshake.
                config.resumption = Resumption::disabled();
                Some((Arc::new(config), name))
            }
            _ => None,
        };
        Ok(Self { address, kind, tls })
    }

    pub(super) fn is_datagram(&self) -> bool {
        self.kind == SocketType::DGRAM
    }

    /// Returns the maximum size of a message, if there is one.
    pub(super) fn longest(&self) -> Option<usize> {
        match self.address {
            Address::Inet(address) if self.is_datagram() => {
                // A packet of 65,535 bytes minus the UDP header and, for IPv4 only, the IP header:
                // udp(7).
                Some(if address.is_ipv4() { 65_507 } else { 65_527 })
            }
            _ => None,
        }
    }

    pub(super) fn open(&self) -> Result<Opened, Failure> {
        let family = match &self.address {
            Address::Inet(address) if address.is_ipv4() => AddressFamily::INET,
            Address::Inet(_) => AddressFamily::INET6,
            Address::Unix(_) => AddressFamily::UNIX,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, self.kind, flags, None).map_err(Failure::connecting)?;
        let connected = match &self.address {
            Address::Inet(address) => {
                if !self.is_datagram() {
                    // Without this option, the end of a message could wait for the acknowledgement
                    // of its beginning.
                    let _ = sockopt::set_tcp_nodelay(&socket, true);
                }
                connect(&socket, address)
            }
            Address::Unix(address) => self.name(&socket).and_then(|()| connect(&socket, address)),
        };
        let is_there = match connected {
            Ok(()) => true,
            Err(Errno::INPROGRESS) => false,
            Err(Errno::AGAIN) if family == AddressFamily::UNIX => return Ok(Opened::NotYet),
            Err(errno) => return Err(Failure::connecting(errno)),
        };
        let tls = match &self.tls {
            None => None,
            Some((config, name)) => {
                let state = ClientConnection::new(config.clone(), name.clone());
                let state = state.map_err(|error| Failure::new(Kind::Tls, error.to_string()))?;
                Some(Box::new(state))
            }
        };
        let link = ClientSocket::new(socket, tls, self.is_datagram());
        Ok(Opened::ClientSocket { link, is_there })
    }

    /// Binds a Unix datagram socket, because a server cannot answer a client without an address.
    /// The kernel chooses an abstract name (unix(7), "Autobind feature").
    fn name(&self, socket: &OwnedFd) -> rustix::io::Result<()> {
        if self.is_datagram() {
            bind(socket, &SocketAddrUnix::new_unnamed())?;
        }
        Ok(())
    }
}

/// Returns the first address of a name on which a server listens. `localhost` has two addresses on
/// most machines, and few servers listen on both.
fn reachable(found: &[SocketAddr]) -> anyhow::Result<SocketAddr> {
    let first = *found.first().context("the name has no address")?;
    let listens =
        |address: &&SocketAddr| TcpStream::connect_timeout(address, Duration::from_secs(1)).is_ok();
    if found.len() == 1 {
        return Ok(first);
    }
    Ok(found.iter().find(listens).copied().unwrap_or(first))
}

fn unix(path: &Path) -> anyhow::Result<SocketAddrUnix> {
    let address = match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name),
        _ => SocketAddrUnix::new(path),
    };
    address.with_context(|| format!("{} cannot be the path of a socket", path.display()))
}
