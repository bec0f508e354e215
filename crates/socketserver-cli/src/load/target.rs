//! Where the load goes: found once, and only on this machine unless that was allowed; then opened
//! for each connection without waiting for it.

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

/// What came of opening a connection.
pub(super) enum Opened {
    /// It is there, or will be once it can be written to.
    ClientSocket { link: ClientSocket, is_there: bool },
    /// The listener's backlog is full. Only Unix sockets say so: connect(2), `EAGAIN`.
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
                    // The unspecified address leads to this machine, too: ip(7).
                    !ip.is_loopback() && !ip.is_unspecified()
                };
                if let Some(address) = found.iter().find(elsewhere)
                    && !allow_remote
                {
                    return Err(UsageError(format!(
                        "{endpoint} is {}, which is no loopback address: whoever may put load on \
                         that machine, and on the network to it, says so by --allow-remote",
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
                    "{endpoint} is for browsers, and load speaks no HTTP: wrk, oha and h2load do"
                ))
                .into());
            }
            Endpoint::Inherited(_) => {
                bail!("only a server is given sockets: write where it listens")
            }
        };
        let tls = match endpoint {
            Endpoint::Tls(address) => {
                let (mut config, name) = tls.client(address)?;
                // Each connection stands for a client of its own, which shakes hands in full.
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

    /// The longest message that can be sent at all.
    pub(super) fn longest(&self) -> Option<usize> {
        match self.address {
            Address::Inet(address) if self.is_datagram() => {
                // What 65,535 bytes of a packet leave beside the headers of UDP, and of IPv4, which
                // count there: udp(7). Those of IPv6 do not.
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
                    // The end of a message is not to wait for the answer to its beginning.
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

    /// A nameless client of a Unix datagram socket cannot be answered; the kernel chooses an abstract
    /// name (unix(7), "Autobind feature").
    fn name(&self, socket: &OwnedFd) -> rustix::io::Result<()> {
        if self.is_datagram() {
            bind(socket, &SocketAddrUnix::new_unnamed())?;
        }
        Ok(())
    }
}

/// Of several addresses of a name, the first at which somebody listens: `localhost` is two on most
/// machines, and few servers listen on both.
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
