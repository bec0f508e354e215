//! Where connections wait that are kept alive: one thread watches them all, and hands each to the
//! pool when there is something to read, or when it has waited for too long.

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

/// The epoll data of the waker; guests are counted from 0.
const WAKER: u64 = u64::MAX;

#[derive(Default)]
pub(super) struct IdleConnections {
    parked: Mutex<Parked>,
    /// Made, and the thread started, for the first guest.
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
    /// Nobody attends any more.
    over: bool,
}

impl IdleConnections {
    /// Takes in a connection that waits. It comes back if there is no room.
    pub(super) fn admit(
        &self,
        pool: &Arc<Pool>,
        pause: Box<dyn Suspended>,
    ) -> Result<(), Box<dyn Suspended>> {
        let Ok(watch) = self.watch(pool) else {
            return Err(pause);
        };
        let mut parked = self.lock();
        if parked.over || parked.by_number.len() >= pool.settings.max_idle {
            return Err(pause);
        }
        let number = parked.next;
        parked.next += 1;
        // One report, and then silence: whoever is handed to the pool is not watched meanwhile.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
        if server::watch(&watch.epoll, pause.socket(), number, flags).is_err() {
            return Err(pause);
        }
        let is_next = pause.until().is_some_and(|until| {
            parked.deadlines.insert((until, number));
            parked.deadlines.first() == Some(&(until, number))
        });
        parked.by_number.insert(number, pause);
        drop(parked);
        if is_next {
            self.wake();
        }
        Ok(())
    }

    /// Makes the thread look at the clock, and at whether it is still wanted.
    pub(super) fn wake(&self) {
        if let Some(watch) = self.watch.get() {
            // The only failure is a full counter, and then it is being woken up already.
            let _ = rustix::io::write(&watch.waker, &1_u64.to_ne_bytes());
        }
    }

    fn watch(&self, pool: &Arc<Pool>) -> io::Result<&Watch> {
        if let Some(watch) = self.watch.get() {
            return Ok(watch);
        }
        // Two may get here at once; the lock lets one of them do it.
        let _turn = self.lock();
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
            .name("pool lobby".into())
            .spawn(move || {
                // Until the descriptors are in their place.
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
            if pool.is_over() && parked.by_number.is_empty() {
                parked.over = true;
                return;
            }
        }
    }

    /// Hands a guest to the pool.
    fn release(&self, number: u64, pool: &Arc<Pool>, waited: io::Result<()>) {
        let mut parked = self.lock();
        let Some(pause) = parked.by_number.remove(&number) else {
            return;
        };
        if let Some(until) = pause.until() {
            parked.deadlines.remove(&(until, number));
        }
        drop(parked);
        if let Err((work, _)) = pool.push(Box::new(move || pause.resume(waited))) {
            // No thread at all, and none to be had: this one has to do.
            wait_to_end(work());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Parked> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
