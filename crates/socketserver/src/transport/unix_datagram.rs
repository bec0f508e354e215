//! Unix datagram sockets, by path or abstract name.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{AddressFamily, SocketType};

use super::datagram_socket::{self, PacketSocket};
use super::{
    AcceptContext, Accepted, SocketOptions, ToBindAddrs, Transport, buffer_sizes, unix_path,
};
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
        datagram_socket::default_timeouts()
    }

    fn server_bind(
        target: &UnixAddress,
        options: &SocketOptions,
    ) -> Result<PacketSocket, BindError> {
        let socket = unix_path::claim(target, SocketType::DGRAM, options, |fd, path| {
            datagram_socket::activate(fd, path, options)
        })?;
        buffer_sizes::set(&socket, options)?;
        Ok(socket)
    }

    fn adopt(fd: OwnedFd, options: &SocketOptions) -> Result<PacketSocket, BindError> {
        let family = [AddressFamily::UNIX];
        let socket = datagram_socket::adopt(fd, &family, "a Unix datagram socket", options)?;
        buffer_sizes::set(&socket, options)?;
        Ok(socket)
    }

    fn take_over(listener: &PacketSocket) {
        listener.take_over();
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

impl<P: AsRef<Path>> ToBindAddrs<UnixDatagram> for P {
    fn to_bind_addrs(&self) -> Result<Vec<UnixAddress>, BindError> {
        unix_path::parse(self.as_ref())
    }
}
