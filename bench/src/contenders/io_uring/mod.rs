//! The floor on io_uring: one thread, one ring; accepting and receiving are asked for once and
//! report many times, into buffers that the kernel picks.

mod buffers;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};

use super::stream::Listener;
use buffers::Buffers;

/// Why it cannot be used here, if so: containers often forbid it.
pub(super) fn missing() -> Option<String> {
    let error = ring().and_then(|ring| Buffers::offer(&ring, 1, 1024)).err();
    error.map(|error| format!("io_uring is not to be had here: {error}"))
}

pub(super) fn serve(listener: &Listener, buffer: usize) -> io::Result<()> {
    let size = u32::try_from(buffer).map_err(io::Error::other)?;
    let count = if size > 1024 { 1024 } else { 4096 };
    let ring = ring()?;
    let mut server = Server {
        listener: listener.as_fd().as_raw_fd(),
        is_tcp: listener.is_tcp(),
        buffers: Buffers::offer(&ring, count, size)?,
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
            server.completed(&completion)?;
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
    /// By descriptor.
    streams: Vec<Option<Stream>>,
}

struct Stream {
    fd: OwnedFd,
    /// Whether the kernel still reports what comes.
    receives: bool,
    /// Buffers and how full they are; the first one is being sent.
    replies: VecDeque<(u16, u32)>,
}

/// What was completed; with the descriptor, it is the tag of an operation.
const ACCEPT: u64 = 1 << 32;
const RECEIVE: u64 = 2 << 32;
const SEND: u64 = 3 << 32;

impl Server {
    fn completed(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let (tag, result) = (completion.user_data(), completion.result());
        let more = cqueue::more(completion.flags());
        let fd = usize::try_from(tag & u64::from(u32::MAX)).map_err(io::Error::other)?;
        match tag & !u64::from(u32::MAX) {
            ACCEPT => {
                if !more {
                    self.accept()?;
                }
                self.accepted(result)
            }
            RECEIVE => {
                let buffer = cqueue::buffer_select(completion.flags());
                self.received(fd, result, buffer, more)
            }
            _ => self.sent(fd, result),
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(types::Fd(self.listener)).build();
        self.submit(&entry.user_data(ACCEPT))
    }

    fn accepted(&mut self, result: i32) -> io::Result<()> {
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        // SAFETY: the kernel has just made it for this process, and nobody else knows it.
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

    fn received(
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
                    self.buffers.give_back(buffer);
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

    /// Sends the first of the replies: one after the other, so that they stay in order.
    fn send(&mut self, index: usize) -> io::Result<()> {
        let Some(stream) = &self.streams[index] else {
            return Ok(());
        };
        let Some(&(buffer, len)) = stream.replies.front() else {
            return Ok(());
        };
        let fd = types::Fd(stream.fd.as_raw_fd());
        // A reply that goes in parts is the kernel's to finish.
        const FLAGS: i32 = 0x100 /* MSG_WAITALL */ | 0x4000 /* MSG_NOSIGNAL */;
        let entry = opcode::Send::new(fd, self.buffers.address(buffer), len).flags(FLAGS);
        self.submit(&entry.build().user_data(SEND | index as u64))
    }

    fn sent(&mut self, index: usize, result: i32) -> io::Result<()> {
        let Some(stream) = &mut self.streams[index] else {
            return Ok(());
        };
        let Some((buffer, len)) = stream.replies.pop_front() else {
            return Ok(());
        };
        self.buffers.give_back(buffer);
        if u32::try_from(result) != Ok(len) {
            for (buffer, _) in stream.replies.drain(..) {
                self.buffers.give_back(buffer);
            }
            // Which ends the receiving, and that closes it.
            let _ = rustix::net::shutdown(&stream.fd, Shutdown::Both);
        }
        self.send(index)?;
        self.close_if_done(index);
        Ok(())
    }

    /// Not before the kernel is done with it: its number could be another connection's by then.
    fn close_if_done(&mut self, index: usize) {
        let done = |stream: &Stream| !stream.receives && stream.replies.is_empty();
        if self.streams[index].as_ref().is_some_and(done) {
            self.streams[index] = None;
        }
    }

    fn submit(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: no operation here has memory of its own but sends, and their buffers are never
            // freed.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            // It is full.
            self.ring.submit()?;
        }
    }
}
