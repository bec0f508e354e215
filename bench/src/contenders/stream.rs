//! The servers over TCP and Unix streams, all with the same kind of socket.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use ::socketserver::transport::{Tcp, UnixStream};
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::environment::set_congestion_control;

use super::{
    Contender, Options, actix, announce, epoll, io_uring, may, monoio, python, socketserver,
    threads, tokio,
};

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serves with buffers of `N` bytes.
pub(super) fn serve<const N: usize>(options: &Options) -> anyhow::Result<()> {
    let Options {
        contender, stop, ..
    } = *options;
    let path = options.unix.as_deref();
    if contender == Contender::May {
        return may::streams::<N>(path);
    }
    let (listener, address) = listen(path)?;
    if matches!(
        contender,
        Contender::PythonThreading | Contender::PythonAsyncio | Contender::PythonGevent
    ) {
        // The interpreter starts slowly; the script itself announces the address.
        return python::serve(contender, &listener, &address, N, stop);
    }
    announce(address)?;
    match contender {
        Contender::Epoll => Ok(epoll::serve(&listener)?),
        Contender::IoUring => Ok(io_uring::serve(&listener, N)?),
        Contender::TokioCurrent => tokio::streams::<N>(&mut tokio::current(), listener, stop),
        Contender::TokioMulti => tokio::streams::<N>(&mut tokio::multi(), listener, stop),
        Contender::Actix => actix::serve::<N>(listener, stop),
        Contender::Monoio => monoio::streams::<N>(listener),
        Contender::StdThread => threads::streams::<N>(&listener),
        Contender::Greenroom => socketserver::runtime::<N>(listener),
        _ => match listener {
            Listener::Tcp(tcp) => socketserver::streams::<Tcp, N>(contender, tcp.into(), stop),
            Listener::Unix(unix) => {
                socketserver::streams::<UnixStream, N>(contender, unix.into(), stop)
            }
        },
    }
}

/// Listens with the longest backlog that the system allows. All contenders use this socket except
/// may, which creates its own.
pub(super) fn listen(path: Option<&Path>) -> anyhow::Result<(Listener, String)> {
    if let Some(path) = path {
        let fd = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        rustix::net::bind(&fd, &rustix::net::SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&fd, i32::MAX)?;
        return Ok((Listener::Unix(fd.into()), path.display().to_string()));
    }
    let fd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    set_congestion_control(&fd);
    rustix::net::bind(&fd, &SocketAddr::from(([127, 0, 0, 1], 0)))?;
    rustix::net::listen(&fd, i32::MAX)?;
    let listener = TcpListener::from(fd);
    let address = listener.local_addr()?.to_string();
    Ok((Listener::Tcp(listener), address))
}

impl Listener {
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        match listener {
            Listener::Tcp(listener) => listener.into(),
            Listener::Unix(listener) => listener.into(),
        }
    }
}

impl std::os::fd::AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}
