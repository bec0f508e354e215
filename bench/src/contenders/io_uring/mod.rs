//! The bare loop on io_uring: one thread, one ring, multishot accept and receive into buffers that
//! the kernel picks.

mod buffers;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};

use super::stream::Listener;
use buffers::Buffers;

/// Returns the reason why io_uring cannot be used here, if there is one. Containers often forbid
/// it.
pub(super) fn unavailable_reason() -> Option<String> {
    let error = ring()
        .and_then(|ring| Buffers::register(&ring, 1, 1024))
        .err();
    error.map(|error| format!("io_uring is not available: {error}"))
}

pub(super) fn serve(listener: &Listener, buffer: usize) -> io::Result<()> {
    let size = u32::try_from(buffer).map_err(io::Error::other)?;
    let count = if size > 1024 { 1024 } else { 4096 };
    let ring = ring()?;
    let mut server = Server {
        listener: listener.as_fd().as_raw_fd(),
        is_tcp: listener.is_tcp(),
        buffers: Buffers::register(&ring, count, size)?,
        ring,
        streams: Vec::new(),
    };
    server.accept()?;
    let mut completions = Vec::new();
    loop {
        match server.ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            submitted => submitted?,
        };
        completions.extend(server.ring.completion());
        for completion in completions.drain(..) {
            server.on_completion(&completion)?;
        }
    }
}

fn ring() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(8192)
        .build(1024)
}

struct Server {
    ring: IoUring,
    buffers: Buffers,
    listener: RawFd,
    is_tcp: bool,
    /// Indexed by descriptor.
    streams: Vec<Option<Stream>>,
}

struct Stream {
    fd: OwnedFd,
    /// True while the multishot receive is active.
    receives: bool,
    /// Filled buffers and their lengths; the first one is being sent.
    replies: VecDeque<(u16, u32)>,
}

/// The kind of an operation. Together with the descriptor it is the operation's tag.
const ACCEPT: u64 = 1 << 32;
const RECEIVE: u64 = 2 << 32;
const SEND: u64 = 3 << 32;

impl Server {
    fn on_completion(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let (tag, result) = (completion.user_data(), completion.result());
        let more = cqueue::more(completion.flags());
        let fd = usize::try_from(tag & u64::from(u32::MAX)).map_err(io::Error::other)?;
        match tag & !u64::from(u32::MAX) {
            ACCEPT => {
                if !more {
                    self.accept()?;
                }
                self.on_accept(result)
            }
            RECEIVE => {
                let buffer = cqueue::buffer_select(completion.flags());
                self.on_receive(fd, result, buffer, more)
            }
            _ => self.on_send(fd, result),
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(types::Fd(self.listener)).build();
        self.submit(&entry.user_data(ACCEPT))
    }

    fn on_accept(&mut self, result: i32) -> io::Result<()> {
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        // SAFETY: the kernel has just created this descriptor for this process, and nothing else
        // owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(result) };
        if self.is_tcp {
            sockopt::set_tcp_nodelay(&fd, true)?;
        }
        let index = usize::try_from(result).map_err(io::Error::other)?;
        if self.streams.len() <= index {
            self.streams.resize_with(index + 1, || None);
        }
        self.streams[index] = Some(Stream {
            fd,
            receives: true,
            replies: VecDeque::new(),
        });
        self.receive(index)
    }

    fn receive(&mut self, index: usize) -> io::Result<()> {
        let Some(stream) = &mut self.streams[index] else {
            return Ok(());
        };
        stream.receives = true;
        let fd = types::Fd(stream.fd.as_raw_fd());
        let entry = opcode::RecvMulti::new(fd, Buffers::GROUP).build();
        self.submit(&entry.user_data(RECEIVE | index as u64))
    }

    fn on_receive(
        &mut self,
        index: usize,
        result: i32,
        buffer: Option<u16>,
        more: bool,
    ) -> io::Result<()> {
        let Some(stream) = &mut self.streams[index] else {
            return Ok(());
        };
        stream.receives = more;
        match (buffer, u32::try_from(result)) {
            (Some(buffer), Ok(len @ 1..)) => {
                stream.replies.push_back((buffer, len));
                if stream.replies.len() == 1 {
                    self.send(index)?;
                }
                if !more {
                    self.receive(index)?;
                }
            }
            (buffer, _) => {
                if let Some(buffer) = buffer {
                    self.buffers.recycle(buffer);
                }
                if result == -Errno::NOBUFS.raw_os_error() {
                    self.receive(index)?;
                } else {
                    self.close_if_done(index);
                }
            }
        }
        Ok(())
    }

    /// Sends the first reply. One send at a time keeps the replies in order.
    fn send(&mut self, index: usize) -> io::Result<()> {
        let Some(stream) = &self.streams[index] else {
            return Ok(());
        };
        let Some(&(buffer, len)) = stream.replies.front() else {
            return Ok(());
        };
        let fd = types::Fd(stream.fd.as_raw_fd());
        // The kernel completes partial sends.
        const FLAGS: i32 = 0x100 /* MSG_WAITALL */ | 0x4000 /* MSG_NOSIGNAL */;
        let entry = opcode::Send::new(fd, self.buffers.address(buffer), len).flags(FLAGS);
        self.submit(&entry.build().user_data(SEND | index as u64))
    }

    fn on_send(&mut self, index: usize, result: i32) -> io::Result<()> {
        let Some(stream) = &mut self.streams[index] else {
            return Ok(());
        };
        let Some((buffer, len)) = stream.replies.pop_front() else {
            return Ok(());
        };
        self.buffers.recycle(buffer);
        if u32::try_from(result) != Ok(len) {
            for (buffer, _) in stream.replies.drain(..) {
                self.buffers.recycle(buffer);
            }
            // The shutdown ends the multishot receive, whose completion closes the connection.
            let _ = rustix::net::shutdown(&stream.fd, Shutdown::Both);
        }
        self.send(index)?;
        self.close_if_done(index);
        Ok(())
    }

    /// Closes the connection once the kernel has no operation on it. Before that, a new connection
    /// could get its descriptor.
    fn close_if_done(&mut self, index: usize) {
        let done = |stream: &Stream| !stream.receives && stream.replies.is_empty();
        if self.streams[index].as_ref().is_some_and(done) {
            self.streams[index] = None;
        }
    }

    fn submit(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: only sends refer to memory, and their buffers are never freed.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            // The submission queue is full.
            self.ring.submit()?;
        }
    }
}
