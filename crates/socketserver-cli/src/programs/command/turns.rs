//! Whose turn it is: so many commands run at once, and further ones wait.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::shell::{Listeners, Stopped, wait_readable};

/// Places for commands, and what became of those that had one.
///
/// The places are counted by the kernel: a forked child has a share in them, and whoever waits for
/// one can wait for other things at the same time. Who comes may be faster than who waits.
#[derive(Debug)]
pub(super) struct Turns {
    free: OwnedFd,
    running: AtomicU64,
    waiting: AtomicU64,
    done: AtomicU64,
    killed: AtomicU64,
}

/// A place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Turns>);

impl Turns {
    pub(super) fn new(places: u32) -> io::Result<Arc<Self>> {
        // Semaphore: each read takes one. eventfd(2).
        let flags = EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Arc::new(Self {
            free: eventfd(places, flags)?,
            running: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            done: AtomicU64::new(0),
            killed: AtomicU64::new(0),
        }))
    }

    /// Waits until there is a place.
    pub(super) fn wait(
        self: &Arc<Self>,
        listeners: Listeners<'_>,
        until: Option<Instant>,
    ) -> Result<Turn, Stopped> {
        let _waiting = Counted::new(&self.waiting);
        loop {
            match rustix::io::read(&self.free, &mut [0; 8]) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_readable(self.free.as_fd(), listeners, until)?,
                Err(errno) => return Err(Stopped::Failed(errno.into())),
            }
        }
        self.running.fetch_add(1, Ordering::Relaxed);
        Ok(Turn(self.clone()))
    }

    /// Counts a command that has ended.
    pub(super) fn count(&self, was_killed: bool) {
        let count = if was_killed { &self.killed } else { &self.done };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// For the console.
    pub(super) fn told(&self) -> String {
        let [running, waiting, done, killed] =
            [&self.running, &self.waiting, &self.done, &self.killed]
                .map(|count| count.load(Ordering::Relaxed));
        format!("commands: running {running}, waiting {waiting}, done {done}, killed {killed}\n")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        // It cannot be full: what is given back was taken.
        let _ = rustix::io::write(&self.0.free, &1_u64.to_ne_bytes());
    }
}

struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
