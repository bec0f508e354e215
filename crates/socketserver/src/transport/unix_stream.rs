//! Unix stream sockets, by path or abstract name.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{AddressFamily, SocketType};

use super::stream::{self, StreamListener};
use super::{Got, Intake, SocketOptions, ToTargets, Transport, unix_path};
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
            stream::activate(fd, path, options)
        })
    }

    fn adopt(fd: OwnedFd, options: &SocketOptions) -> Result<StreamListener, BindError> {
        stream::adopt(fd, &[AddressFamily::UNIX], "a Unix stream socket", options)
    }

    fn take_over(listener: &StreamListener) {
        listener.take_over();
    }

    fn get_request(
        listener: &mut StreamListener,
        intake: &mut Intake,
    ) -> rustix::io::Result<Got<Connection>> {
        stream::get_request(listener, intake)
    }
}

impl<P: AsRef<Path>> ToTargets<UnixStream> for P {
    fn to_targets(&self) -> Result<Vec<UnixAddress>, BindError> {
        unix_path::parse(self.as_ref())
    }
}
