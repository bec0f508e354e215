//! Slots for the commands of forked children. The kernel frees the slot of a child that is killed.
//!
//! A slot is a pipe. A child holds the slot while it has the pipe open for writing and locked. When
//! the child closes the pipe or is killed, the kernel unlocks the pipe and then wakes its pollers.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;

#[derive(Debug)]
pub(super) struct Places {
    /// The read ends of the pipes.
    pipes: Vec<OwnedFd>,
    /// Readable while there is a pipe that no child has open for writing.
    free: OwnedFd,
}

impl Places {
    /// Creates `count` slots. The server calls this before it forks, so that its children inherit
    /// the pipes.
    pub(super) fn new(count: u32) -> io::Result<Self> {
        let free = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut pipes = Vec::new();
        for _ in 0..count {
            let (pipe, _) = io::pipe()?;
            let pipe = OwnedFd::from(pipe);
            // A server that has changed its user opens the pipe by `/proc/self/fd`. Other processes
            // have no access to that path.
            fchmod(&pipe, Mode::from_raw_mode(0o666))?;
            let data = epoll::EventData::new_u64(0);
            epoll::add(&free, &pipe, data, epoll::EventFlags::HUP)?;
            pipes.push(pipe);
        }
        let places = Self { pipes, free };
        places.take()?;
        Ok(places)
    }

    /// Takes a free slot. Closing the returned file frees it. Returns `None` if no slot is free.
    pub(super) fn take(&self) -> io::Result<Option<File>> {
        for pipe in &self.pipes {
            let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
            let place = File::options().write(true).open(path)?;
            match flock(&place, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(place)),
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(None)
    }

    /// Returns a descriptor that is readable when another `take` may succeed.
    pub(super) fn free(&self) -> BorrowedFd<'_> {
        self.free.as_fd()
    }
}
