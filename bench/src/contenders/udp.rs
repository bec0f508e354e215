//! The servers over UDP.

use std::io;
use std::mem::MaybeUninit;
use std::net::UdpSocket;

use anyhow::ensure;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Contender, Transport, announce, may, monoio, python, socketserver, threads, tokio};

pub(super) fn serve(contender: Contender, stop: bool) -> anyhow::Result<()> {
    ensure!(
        contender.supports(Transport::Udp),
        "{contender} has no UDP server here"
    );
    if contender == Contender::May {
        return may::datagrams();
    }
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    if matches!(
        contender,
        Contender::PythonThreading | Contender::PythonAsyncio | Contender::PythonGevent
    ) {
        return python::serve(contender, &socket, &address, 1024, stop);
    }
    announce(address)?;
    match contender {
        Contender::Epoll => Ok(epoll_loop(&socket)?),
        Contender::TokioCurrent => tokio::datagrams(&mut tokio::current(), socket, stop),
        Contender::TokioMulti => tokio::datagrams(&mut tokio::multi(), socket, stop),
        Contender::Monoio => monoio::datagrams(socket),
        Contender::StdThread => Ok(threads::datagrams(&socket)?),
        _ => socketserver::datagrams(contender, socket.into(), stop),
    }
}

/// The bare loop: one thread, one epoll set, one receive and one send per datagram.
fn epoll_loop(socket: &UdpSocket) -> io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64(0);
    epoll::add(&epoll, socket, data, epoll::EventFlags::IN)?;
    let mut events = [const { MaybeUninit::uninit() }; 1];
    let mut buf = [0; 1024];
    loop {
        match epoll::wait(&epoll, &mut events, None) {
            Err(Errno::INTR) => continue,
            ready => ready?,
        };
        loop {
            match rustix::net::recvfrom(socket, &mut buf, RecvFlags::DONTWAIT) {
                Ok((n, _, Some(from))) => {
                    // A reply that does not fit the send buffer is lost.
                    let flags = SendFlags::DONTWAIT;
                    let _ = rustix::net::sendto(socket, &buf[..n], flags, &from);
                }
                Err(Errno::AGAIN) => break,
                // An error of an earlier reply (ICMP), or a sender without an address.
                _ => {}
            }
        }
    }
}
