//! The servers over UDP.

use std::io;
use std::mem::MaybeUninit;
use std::net::UdpSocket;

use anyhow::bail;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socketserver::transport::Udp;
use socketserver::{Datagram, Sequential, handler_fn};

use super::{Contender, announce, green, pooled, socketserver, threading};

pub(super) fn serve(contender: Contender) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    announce(socket.local_addr()?)?;
    let echo = handler_fn(|packet: &mut Datagram| Ok(packet.reply(packet.bytes())?));
    match contender {
        Contender::Epoll => Ok(bare(&socket)?),
        Contender::Green => socketserver::<Udp, _, _, _>(green(), socket, echo),
        Contender::Threading => socketserver::<Udp, _, _, _>(threading(), socket, echo),
        Contender::Pooled => socketserver::<Udp, _, _, _>(pooled(), socket, echo),
        Contender::Sequential => socketserver::<Udp, _, _, _>(Sequential, socket, echo),
        Contender::TokioCurrent => {
            tokio(&mut tokio::runtime::Builder::new_current_thread(), socket)
        }
        Contender::TokioMulti => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            tokio(builder.worker_threads(2), socket)
        }
        other => bail!("{other} has no server over UDP here"),
    }
}

/// The floor: one thread, one epoll set, one receive and one send for each datagram.
fn bare(socket: &UdpSocket) -> io::Result<()> {
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
                    // A reply that finds no room is lost.
                    let flags = SendFlags::DONTWAIT;
                    let _ = rustix::net::sendto(socket, &buf[..n], flags, &from);
                }
                Err(Errno::AGAIN) => break,
                // What a reply has met, or a sender without an address.
                _ => {}
            }
        }
    }
}

fn tokio(builder: &mut tokio::runtime::Builder, socket: UdpSocket) -> anyhow::Result<()> {
    socket.set_nonblocking(true)?;
    builder.enable_io().build()?.block_on(async {
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let mut buf = [0; 1024];
        loop {
            if let Ok((n, from)) = socket.recv_from(&mut buf).await {
                let _ = socket.send_to(&buf[..n], from).await;
            }
        }
    })
}
