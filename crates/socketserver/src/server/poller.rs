//! The poller: the only place where an accept loop sleeps.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::accept_loop::Token;
use crate::ServeError;
use crate::park::{Interest, Park, Parker};

/// An epoll set of listeners, wakers and children. It is level-triggered, so that a turn may leave
/// work for the next one.
pub(crate) struct Poller {
    /// Present if the loop is not parked by the kernel. An epoll set is itself a descriptor, which
    /// is readable when any of its own is.
    park: Option<Box<dyn Park>>,
    epoll: OwnedFd,
}

impl Poller {
    pub(crate) fn new(parker: Option<&dyn Parker>) -> Result<Self, ServeError> {
        let failed = |source: io::Error| ServeError::Resources {
            step: "create an epoll set",
            source,
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let park = parker
            .map(|parker| parker.attach(epoll.as_fd()))
            .transpose()
            .map_err(failed)?;
        Ok(Self { park, epoll })
    }

    pub(crate) fn add(&self, fd: impl AsFd, source: Token) -> Result<(), ServeError> {
        let watched = watch(&self.epoll, fd, source.pack(), epoll::EventFlags::IN);
        watched.map_err(|errno| ServeError::Resources {
            step: "watch a descriptor",
            source: errno.into(),
        })
    }

    /// Adds a descriptor that is reported once.
    pub(crate) fn add_once(&self, fd: impl AsFd, source: Token) -> Result<(), ServeError> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        let watched = watch(&self.epoll, fd, source.pack(), flags);
        watched.map_err(|errno| ServeError::Resources {
            step: "watch a descriptor",
            source: errno.into(),
        })
    }

    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Sleeps until a descriptor is ready or `until` has passed. Returns the ready ones.
    pub(crate) fn wait(
        &self,
        until: Option<Instant>,
        mut ready: impl FnMut(Token),
    ) -> Result<(), ServeError> {
        let failed = |source| ServeError::Resources {
            step: "wait for events",
            source,
        };
        if let Some(park) = &self.park {
            match park.wait(self.epoll.as_fd(), Interest::Read, until) {
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(()),
                other => other.map_err(failed)?,
            }
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = if self.park.is_some() {
            Some(Duration::ZERO)
        } else {
            left
        };
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 64];
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => {
                for event in events {
                    ready(Token::unpack(event.data.u64()));
                }
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

/// Registers `fd` with `data`, whether it is new to the epoll set or still registered from an
/// earlier round.
pub(crate) fn watch(
    epoll: &OwnedFd,
    fd: impl AsFd,
    data: u64,
    flags: epoll::EventFlags,
) -> rustix::io::Result<()> {
    let data = epoll::EventData::new_u64(data);
    match epoll::add(epoll, &fd, data, flags) {
        Err(Errno::EXIST) => epoll::modify(epoll, &fd, data, flags),
        added => added,
    }
}
