//! Unix datagram sockets, by path or abstract name.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{AddressFamily, SocketType};

use super::packet::{self, PacketSocket};
use super::{Got, Intake, SocketOptions, ToTargets, Transport, buffers, unix_path};
use crate::{BindError, Datagram, Timeouts, UnixAddress};

/// Unix datagram sockets; a request is a [`Datagram`].
#[derive(Clone, Copy, Debug)]
pub struct UnixDatagram;

impl Transport for UnixDatagram {
    type Request = Datagram;
    type Target = UnixAddress;
    type Listener = PacketSocket;
    const NAME: &'static str = "unixgram";
    const IS_DATAGRAM: bool = true;

    fn default_timeouts() -> Timeouts {
        packet::default_timeouts()
    }

    fn server_bind(
        target: &UnixAddress,
        options: &SocketOptions,
    ) -> Result<PacketSocket, BindError> {
        let socket = unix_path::claim(target, SocketType::DGRAM, options, |fd, path| {
            packet::activate(fd, path, options)
        })?;
        buffers::set(&socket, options)?;
        Ok(socket)
    }

    fn adopt(fd: OwnedFd, options: &SocketOptions) -> Result<PacketSocket, BindError> {
        let family = [AddressFamily::UNIX];
        let socket = packet::adopt(fd, &family, "a Unix datagram socket", options)?;
        buffers::set(&socket, options)?;
        Ok(socket)
    }

    fn take_over(listener: &PacketSocket) {
        listener.take_over();
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

impl<P: AsRef<Path>> ToTargets<UnixDatagram> for P {
    fn to_targets(&self) -> Result<Vec<UnixAddress>, BindError> {
        unix_path::parse(self.as_ref())
    }
}
