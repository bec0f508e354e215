//! The limit of concurrent commands. Further commands wait for a free slot.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::places;
use super::shell::{Listeners, Stopped, wait_readable};

/// Slots for commands, and counters of the commands.
///
/// A command waits for a slot in `poll(2)`, so that it can watch its listeners at the same time.
#[derive(Debug)]
pub(super) struct CommandSlots {
    places: Places,
    running: AtomicU64,
    waiting: AtomicU64,
    done: AtomicU64,
    killed: AtomicU64,
}

#[derive(Debug)]
enum Places {
    /// A semaphore. A new command may take a slot before a waiting one.
    OfThreads(OwnedFd),
    /// Pipes, because a child may be killed while it holds a slot.
    OfChildren(places::Places),
}

/// A slot. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct Slot {
    turns: Arc<CommandSlots>,
    /// The locked pipe of a forked child. The kernel closes it when the child is killed.
    grant: Option<File>,
}

impl CommandSlots {
    pub(super) fn new(places: u32, are_forked: bool) -> io::Result<Arc<Self>> {
        // With EFD_SEMAPHORE each read takes 1 from the counter: eventfd(2).
        let flags = EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Arc::new(Self {
            places: match are_forked {
                true => Places::OfChildren(places::Places::new(places)?),
                false => Places::OfThreads(eventfd(places, flags)?),
            },
            running: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            done: AtomicU64::new(0),
            killed: AtomicU64::new(0),
        }))
    }

    /// Waits for a free slot and takes it.
    pub(super) fn wait(
        self: &Arc<Self>,
        listeners: Listeners<'_>,
        until: Option<Instant>,
    ) -> Result<Slot, Stopped> {
        let _waiting = Counted::new(&self.waiting);
        let grant = match &self.places {
            Places::OfThreads(free) => {
                while take(free, &mut [0; 8])?.is_none() {
                    wait_readable(free.as_fd(), listeners, until)?;
                }
                None
            }
            Places::OfChildren(places) => loop {
                match places.take().map_err(Stopped::Failed)? {
                    Some(grant) => break Some(grant),
                    None => wait_readable(places.free(), listeners, until)?,
                }
            },
        };
        self.running.fetch_add(1, Ordering::Relaxed);
        Ok(Slot {
            turns: self.clone(),
            grant,
        })
    }

    /// Counts a command that has ended.
    pub(super) fn count(&self, was_killed: bool) {
        let count = if was_killed { &self.killed } else { &self.done };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counters as one line for the console.
    pub(super) fn told(&self) -> String {
        let [running, waiting, done, killed] =
            [&self.running, &self.waiting, &self.done, &self.killed]
                .map(|count| count.load(Ordering::Relaxed));
        format!("commands: running {running}, waiting {waiting}, done {done}, killed {killed}\n")
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.turns.running.fetch_sub(1, Ordering::Relaxed);
        if let Places::OfThreads(free) = &self.turns.places {
            // The counter cannot overflow, because this slot was taken from it.
            let _ = rustix::io::write(free, &1_u64.to_ne_bytes());
        }
        drop(self.grant.take());
    }
}

/// Reads without waiting. Returns `None` if there is nothing to read.
fn take(from: &OwnedFd, bytes: &mut [u8]) -> Result<Option<usize>, Stopped> {
    match rustix::io::retry_on_intr(|| rustix::io::read(from, &mut *bytes)) {
        Ok(n) => Ok(Some(n)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(Stopped::Failed(errno.into())),
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
