//! UDP over IPv4 and IPv6.

use std::fmt::Debug;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType};

use super::packet::{self, PacketSocket};
use super::{Got, Intake, SocketOptions, ToTargets, Transport, buffers, inet};
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
        packet::default_timeouts()
    }

    fn server_bind(
        target: &SocketAddr,
        options: &SocketOptions,
    ) -> Result<PacketSocket, BindError> {
        let fd = inet::bound(*target, SocketType::DGRAM, options)?;
        let socket = packet::activate(fd, None, options)
            .map_err(|errno| inet::system("set the options of", *target, errno))?;
        buffers::set(&socket, options)?;
        Ok(socket)
    }

    fn adopt(fd: OwnedFd, options: &SocketOptions) -> Result<PacketSocket, BindError> {
        let families = [AddressFamily::INET, AddressFamily::INET6];
        let socket = packet::adopt(fd, &families, "a UDP socket", options)?;
        buffers::set(&socket, options)?;
        Ok(socket)
    }

    fn get_request(
        socket: &mut PacketSocket,
        intake: &mut Intake,
    ) -> rustix::io::Result<Got<Datagram>> {
        packet::get_request(socket, intake)
    }

    fn has_received(socket: &PacketSocket) -> bool {
        socket.has_received()
    }
}

impl<A: ToSocketAddrs + Debug> ToTargets<Udp> for A {
    fn to_targets(&self) -> Result<Vec<SocketAddr>, BindError> {
        inet::resolve(self)
    }
}
