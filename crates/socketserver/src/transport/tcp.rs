//! TCP over IPv4 and IPv6.

use std::fmt::Debug;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType};

use super::stream::{self, StreamListener};
use super::{Got, Intake, SocketOptions, ToTargets, Transport, inet};
use crate::{BindError, Connection, Timeouts};

/// TCP; a request is a [`Connection`].
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

impl Transport for Tcp {
    type Request = Connection;
    type Target = SocketAddr;
    type Listener = StreamListener;
    const NAME: &'static str = "tcp";
    const IS_DATAGRAM: bool = false;

    fn default_timeouts() -> Timeouts {
        Timeouts::default()
    }

    fn server_bind(
        target: &SocketAddr,
        options: &SocketOptions,
    ) -> Result<StreamListener, BindError> {
        let fd = inet::bound(*target, SocketType::STREAM, options)?;
        // With REUSEADDR, two may bind the same address and the second fails to listen.
        stream::activate(fd, None, options).map_err(|errno| inet::refused(*target, errno))
    }

    fn adopt(fd: OwnedFd, options: &SocketOptions) -> Result<StreamListener, BindError> {
        let families = [AddressFamily::INET, AddressFamily::INET6];
        stream::adopt(fd, &families, "a TCP socket", options)
    }

    fn get_request(
        listener: &mut StreamListener,
        intake: &mut Intake,
    ) -> rustix::io::Result<Got<Connection>> {
        stream::get_request(listener, intake)
    }
}

impl<A: ToSocketAddrs + Debug> ToTargets<Tcp> for A {
    fn to_targets(&self) -> Result<Vec<SocketAddr>, BindError> {
        inet::resolve(self)
    }
}
