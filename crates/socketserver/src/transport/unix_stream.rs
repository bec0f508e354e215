//! Unix stream sockets, by path or abstract name.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{AddressFamily, SocketType};

use super::stream_listener::{self, StreamListener};
use super::{AcceptContext, Accepted, SocketOptions, ToBindAddrs, Transport, unix_path};
use crate::{BindError, Connection, Timeouts, UnixAddress};

/// Unix stream sockets; a request is a [`Connection`].
#[derive(Clone, Copy, Debug)]
pub struct UnixStream;

impl Transport for UnixStream {
    type Request = Connection;
    type Target = UnixAddress;
    type Listener = StreamListener;
    const NAME: &'static str = "unix";
    const IS_DATAGRAM: bool = false;

    fn default_timeouts() -> Timeouts {
        Timeouts::default()
    }

    fn server_bind(
        target: &UnixAddress,
        options: &SocketOptions,
    ) -> Result<StreamListener, BindError> {
        unix_path::claim(target, SocketType::STREAM, options, |fd, path| {
            stream_listener::activate(fd, path, options)
        })
    }

    fn adopt(fd: OwnedFd, options: &SocketOptions) -> Result<StreamListener, BindError> {
        stream_listener::adopt(fd, &[AddressFamily::UNIX], "a Unix stream socket", options)
    }

    fn take_over(listener: &StreamListener) {
        listener.take_over();
    }

    fn get_request(
        listener: &mut StreamListener,
        accept_context: &mut AcceptContext,
    ) -> rustix::io::Result<Accepted<Connection>> {
        stream_listener::get_request(listener, accept_context)
    }
}

impl<P: AsRef<Path>> ToBindAddrs<UnixStream> for P {
    fn to_bind_addrs(&self) -> Result<Vec<UnixAddress>, BindError> {
        unix_path::parse(self.as_ref())
    }
}
