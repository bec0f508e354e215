//! TCP over IPv4 and IPv6.

use std::fmt::Debug;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::stream_listener::{self, StreamListener};
use super::{AcceptContext, Accepted, SocketOptions, TcpKeepalive, ToBindAddrs, Transport, inet};
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
        tune(&fd, options).map_err(|errno| inet::system("set the options of", *target, errno))?;
        // With REUSEADDR, two sockets can bind the same address; the second then fails to listen.
        stream_listener::activate(fd, None, options).map_err(|errno| inet::refused(*target, errno))
    }

    fn adopt(fd: OwnedFd, options: &SocketOptions) -> Result<StreamListener, BindError> {
        let families = [AddressFamily::INET, AddressFamily::INET6];
        let listener = stream_listener::adopt(fd, &families, "a TCP socket", options)?;
        tune(&listener, options).map_err(|errno| BindError::System {
            step: "set the options of",
            address: "the adopted socket".into(),
            source: errno.into(),
        })?;
        Ok(listener)
    }

    fn ignore_newcomers(listener: &StreamListener) {
        listener.ignore_newcomers();
    }

    fn get_request(
        listener: &mut StreamListener,
        accept_context: &mut AcceptContext,
    ) -> rustix::io::Result<Accepted<Connection>> {
        stream_listener::get_request(listener, accept_context)
    }
}

/// Sets the options of connections on the listener. Linux copies these options to each accepted
/// socket, which saves a system call per connection.
fn tune(listener: &impl AsFd, options: &SocketOptions) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(listener, options.nodelay)?;
    if let Some(TcpKeepalive {
        idle,
        interval,
        probes,
    }) = options.keepalive
    {
        sockopt::set_socket_keepalive(listener, true)?;
        sockopt::set_tcp_keepidle(listener, idle)?;
        sockopt::set_tcp_keepintvl(listener, interval)?;
        sockopt::set_tcp_keepcnt(listener, probes)?;
    }
    if let Some(limit) = options.user_timeout {
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        // Zero would select the system default.
        sockopt::set_tcp_user_timeout(listener, millis.max(1))?;
    }
    Ok(())
}

impl<A: ToSocketAddrs + Debug> ToBindAddrs<Tcp> for A {
    fn to_bind_addrs(&self) -> Result<Vec<SocketAddr>, BindError> {
        inet::resolve(self)
    }
}
