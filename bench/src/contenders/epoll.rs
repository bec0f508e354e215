//! The bare loop on epoll: one thread, one epoll set, one buffer for all connections, and one read
//! and one write per event.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, sockopt};

use super::stream::Listener;

const LISTENER: u64 = u64::MAX;

pub(super) fn serve(listener: &Listener) -> io::Result<()> {
    listener.set_nonblocking()?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64(LISTENER);
    epoll::add(&epoll, listener, data, epoll::EventFlags::IN)?;
    let mut streams: Vec<Option<OwnedFd>> = Vec::new();
    let mut events = [const { MaybeUninit::uninit() }; 1024];
    let mut buf = vec![0; 64 << 10];
    loop {
        let (events, _) = match epoll::wait(&epoll, &mut events, None) {
            Err(Errno::INTR) => continue,
            events => events?,
        };
        for event in events {
            let token = event.data.u64();
            if token == LISTENER {
                accept(listener, &epoll, &mut streams)?;
                continue;
            }
            let Some(stream) = streams.get(index(token)).and_then(Option::as_ref) else {
                continue;
            };
            if !echo(stream, &mut buf) {
                streams[index(token)] = None;
            }
        }
    }
}

/// Echoes the available input. Returns false if the connection has ended.
fn echo(stream: &OwnedFd, buf: &mut [u8]) -> bool {
    loop {
        match rustix::net::recv(stream, &mut *buf, RecvFlags::empty()) {
            Ok((0, _)) => return false,
            Ok((n, _)) => {
                // Replies are small: close a client that does not read.
                if rustix::net::send(stream, &buf[..n], SendFlags::NOSIGNAL) != Ok(n) {
                    return false;
                }
                // A short read has emptied the socket: epoll(7), question 9.
                if n < buf.len() {
                    return true;
                }
            }
            Err(Errno::AGAIN) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn accept(
    listener: &Listener,
    epoll: &OwnedFd,
    streams: &mut Vec<Option<OwnedFd>>,
) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        let stream = match accept_with(listener, flags) {
            Ok(stream) => stream,
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if listener.is_tcp() {
            sockopt::set_tcp_nodelay(&stream, true)?;
        }
        let number = u64::from(stream.as_raw_fd().unsigned_abs());
        let data = epoll::EventData::new_u64(number);
        epoll::add(
            epoll,
            &stream,
            data,
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        if streams.len() <= index(number) {
            streams.resize_with(index(number) + 1, || None);
        }
        streams[index(number)] = Some(stream);
    }
}

fn index(token: u64) -> usize {
    usize::try_from(token).unwrap_or(usize::MAX)
}
