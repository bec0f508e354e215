//! Places for commands of forked children, which the kernel takes back from a child that is killed.
//!
//! A place is a pipe. The child that opens it for writing and locks it has the place. When the child
//! closes it, or has been killed, the kernel unlocks it and then tells all who poll it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;

#[derive(Debug)]
pub(super) struct Places {
    /// The ends for reading.
    pipes: Vec<OwnedFd>,
    /// Readable while there is a pipe that no child has open for writing.
    free: OwnedFd,
}

impl Places {
    /// To be called in the server, whose children inherit them.
    pub(super) fn new(count: u32) -> io::Result<Self> {
        let free = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut pipes = Vec::new();
        for _ in 0..count {
            let (pipe, _) = io::pipe()?;
            let pipe = OwnedFd::from(pipe);
            // A server that becomes another user opens it by /proc, where no other process may.
            fchmod(&pipe, Mode::from_raw_mode(0o666))?;
            let data = epoll::EventData::new_u64(0);
            epoll::add(&free, &pipe, data, epoll::EventFlags::HUP)?;
            pipes.push(pipe);
        }
        let places = Self { pipes, free };
        places.take()?;
        Ok(places)
    }

    /// Takes a free place, which is free again when what this returns is closed.
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

    /// Readable when it is worth while to try again.
    pub(super) fn free(&self) -> BorrowedFd<'_> {
        self.free.as_fd()
    }
}
