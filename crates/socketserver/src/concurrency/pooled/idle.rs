//! Suspended connections of the pool. One thread watches them all, and hands a connection to the
//! pool when input arrives or the wait exceeds its limit.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::Pool;
use crate::server::{self, Suspended, wait_to_end};

/// The epoll data of the waker. Connections are numbered from 0.
const WAKER: u64 = u64::MAX;

#[derive(Default)]
pub(super) struct IdleConnections {
    parked: Mutex<Parked>,
    /// Created, with its thread, for the first suspended connection.
    watch: OnceLock<Watch>,
}

struct Watch {
    epoll: OwnedFd,
    waker: OwnedFd,
}

#[derive(Default)]
struct Parked {
    by_number: HashMap<u64, Box<dyn Suspended>>,
    deadlines: BTreeSet<(Instant, u64)>,
    next: u64,
    /// True after the watching thread has ended.
    ended: bool,
}

impl IdleConnections {
    /// Adds a suspended connection. Returns it if there is no room.
    pub(super) fn admit(
        &self,
        pool: &Arc<Pool>,
        suspended: Box<dyn Suspended>,
    ) -> Result<(), Box<dyn Suspended>> {
        let Ok(watch) = self.watch(pool) else {
            return Err(suspended);
        };
        let mut parked = self.lock();
        if parked.ended || parked.by_number.len() >= pool.settings.max_idle {
            return Err(suspended);
        }
        let number = parked.next;
        parked.next += 1;
        // `EPOLLONESHOT`: a connection that was handed to the pool reports no further events.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
        if server::watch(&watch.epoll, suspended.socket(), number, flags).is_err() {
            return Err(suspended);
        }
        let is_next = suspended.until().is_some_and(|until| {
            parked.deadlines.insert((until, number));
            parked.deadlines.first() == Some(&(until, number))
        });
        parked.by_number.insert(number, suspended);
        drop(parked);
        if is_next {
            self.wake();
        }
        Ok(())
    }

    /// Wakes the thread, so that it checks deadlines and whether the pool has ended.
    pub(super) fn wake(&self) {
        if let Some(watch) = self.watch.get() {
            // The only possible error is a full counter; the thread is then already being woken.
            let _ = rustix::io::write(&watch.waker, &1_u64.to_ne_bytes());
        }
    }

    fn watch(&self, pool: &Arc<Pool>) -> io::Result<&Watch> {
        if let Some(watch) = self.watch.get() {
            return Ok(watch);
        }
        // Two threads may get here at the same time; the lock serializes them.
        let _guard = self.lock();
        if let Some(watch) = self.watch.get() {
            return Ok(watch);
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), flags)?;
        let pool = pool.clone();
        let (begin, wait) = std::sync::mpsc::channel::<()>();
        thread::Builder::new()
            .name("pool idle".into())
            .spawn(move || {
                // Wait until `self.watch` is set.
                let _ = wait.recv();
                if let Some(watch) = pool.idle.watch.get() {
                    pool.idle.run(watch, &pool);
                }
            })?;
        let watch = self.watch.get_or_init(|| Watch { epoll, waker });
        drop(begin);
        Ok(watch)
    }

    fn run(&self, watch: &Watch, pool: &Arc<Pool>) {
        let mut events = [const { MaybeUninit::uninit() }; 64];
        loop {
            let next = self.lock().deadlines.first().map(|(until, _)| *until);
            let left = next.map(|next| next.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            if let Ok((events, _)) = epoll::wait(&watch.epoll, &mut events, timeout.as_ref()) {
                for event in events {
                    self.release(event.data.u64(), pool, Ok(()));
                }
            }
            let now = Instant::now();
            loop {
                let due = self.lock().deadlines.first().copied();
                match due {
                    Some((until, number)) if until <= now => {
                        self.release(number, pool, Err(io::ErrorKind::TimedOut.into()));
                    }
                    _ => break,
                }
            }
            let mut parked = self.lock();
            if pool.has_ended() && parked.by_number.is_empty() {
                parked.ended = true;
                return;
            }
        }
    }

    /// Hands a connection to the pool.
    fn release(&self, number: u64, pool: &Arc<Pool>, waited: io::Result<()>) {
        let mut parked = self.lock();
        let Some(suspended) = parked.by_number.remove(&number) else {
            return;
        };
        if let Some(until) = suspended.until() {
            parked.deadlines.remove(&(until, number));
        }
        drop(parked);
        if let Err((work, _)) = pool.push(Box::new(move || suspended.resume(waited))) {
            // The pool has no thread and cannot create one, so this thread runs the request.
            wait_to_end(work());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Parked> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
