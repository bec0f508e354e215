//! The common part of all sockets: try an operation, and repeat it when the descriptor is ready.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::reactor::{Interest, Readiness};
use crate::worker::lock;

/// A non-blocking socket with its readiness.
#[derive(Debug)]
pub(super) struct Socket<S> {
    // Declared first, so that it is dropped before the descriptor that it watches.
    readiness: Readiness,
    pub(super) inner: S,
    timeouts: Mutex<Timeouts>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Timeouts {
    read: Option<Duration>,
    write: Option<Duration>,
}

impl<S: AsFd> Socket<S> {
    /// Takes over a socket and makes it non-blocking.
    pub(super) fn new(inner: S) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&inner, true)?;
        Ok(Self {
            readiness: Readiness::new(),
            inner,
            timeouts: Mutex::default(),
        })
    }

    pub(super) fn set_timeout(
        &self,
        interest: Interest,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a timeout of zero would fail every wait: pass None for no limit",
            ));
        }
        let mut timeouts = lock(&self.timeouts);
        match interest {
            Interest::Read => timeouts.read = timeout,
            Interest::Write => timeouts.write = timeout,
        }
        Ok(())
    }

    /// Runs an operation until it no longer fails with `WouldBlock`.
    pub(super) fn run<T>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(&S) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut deadline = None;
        loop {
            match operation(&self.inner) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let until = *deadline.get_or_insert_with(|| self.deadline(interest));
                    self.wait(interest, until)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => {
                    self.readiness.record_progress(false);
                    return done;
                }
            }
        }
    }

    /// Reads. If the socket is known to be empty, waits before the first attempt.
    pub(super) fn read(
        &self,
        buf: &mut [u8],
        mut read: impl FnMut(&S, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut deadline = None;
        let mut is_exhausted = self.readiness.is_exhausted();
        loop {
            if !std::mem::take(&mut is_exhausted) {
                match read(&self.inner, buf) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Ok(n) => {
                        self.readiness.record_progress(n > 0 && n < buf.len());
                        return Ok(n);
                    }
                    error => return error,
                }
            }
            let until = *deadline.get_or_insert_with(|| self.deadline(Interest::Read));
            self.wait(Interest::Read, until)?;
        }
    }

    /// Waits until the descriptor may be ready.
    pub(super) fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.readiness.wait(self.inner.as_fd(), interest, deadline)
    }

    fn deadline(&self, interest: Interest) -> Option<Instant> {
        let timeouts = *lock(&self.timeouts);
        let timeout = match interest {
            Interest::Read => timeouts.read,
            Interest::Write => timeouts.write,
        };
        timeout.and_then(|timeout| Instant::now().checked_add(timeout))
    }
}

impl<S: AsFd> AsFd for Socket<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}
