//! UDP over IPv4 and IPv6.

use std::fmt::Debug;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType};

use super::datagram_socket::{self, PacketSocket};
use super::{AcceptContext, Accepted, SocketOptions, ToBindAddrs, Transport, buffer_sizes, inet};
use crate::{BindError, Datagram, Timeouts};

/// UDP; a request is a [`Datagram`].
#[derive(Clone, Copy, Debug)]
pub struct Udp;

impl Transport for Udp {
    type Request = Datagram;
    type Target = SocketAddr;
    type Listener = PacketSocket;
    const NAME: &'static str = "udp";
    const IS_DATAGRAM: bool = true;

    fn default_timeouts() -> Timeouts {
        datagram_socket::default_timeouts()
    }

    fn server_bind(
        target: &SocketAddr,
        options: &SocketOptions,
    ) -> Result<PacketSocket, BindError> {
        let fd = inet::bound(*target, SocketType::DGRAM, options)?;
        let socket = datagram_socket::activate(fd, None, options)
            .map_err(|errno| inet::system("set the options of", *target, errno))?;
        buffer_sizes::set(&socket, options)?;
        Ok(socket)
    }

    fn adopt(fd: OwnedFd, options: &SocketOptions) -> Result<PacketSocket, BindError> {
        let families = [AddressFamily::INET, AddressFamily::INET6];
        let socket = datagram_socket::adopt(fd, &families, "a UDP socket", options)?;
        buffer_sizes::set(&socket, options)?;
        Ok(socket)
    }

    fn get_request(
        socket: &mut PacketSocket,
        accept_context: &mut AcceptContext,
    ) -> rustix::io::Result<Accepted<Datagram>> {
        datagram_socket::get_request(socket, accept_context)
    }

    fn has_received(socket: &PacketSocket) -> bool {
        socket.has_received()
    }
}

impl<A: ToSocketAddrs + Debug> ToBindAddrs<Udp> for A {
    fn to_bind_addrs(&self) -> Result<Vec<SocketAddr>, BindError> {
        inet::resolve(self)
    }
}
