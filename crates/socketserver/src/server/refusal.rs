//! Turning clients away: what they are told, how they are closed, and who is told of it.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::Server;
use super::arrival::Job;
use super::controller::{Record, RequestInfo};
use super::session::sealed::Request as _;
use super::task::Task;
use crate::concurrency::{AtLimit, Concurrency};
use crate::event::{Event, Refusal};
use crate::transport::{Got, Transport};
use crate::{Address, RequestHandler};

/// How long a client that was told something has to take it.
const LINGER: Duration = Duration::from_secs(1);

/// So many may linger. The oldest is closed when there is one more.
const LINGERING: usize = 64;

/// The longest notice, in bytes: the first segment of a connection takes it.
pub(super) const NOTICE: usize = 1024;

/// What a server needs to turn clients away.
pub(super) struct Refusals {
    /// What they are told; it may be nothing.
    notice: Arc<[u8]>,
    /// They were told, and have not closed their end. A close now could reset the connection, and
    /// a reset may overtake what was said
    /// ([RFC 9112, 9.6](https://www.rfc-editor.org/rfc/rfc9112#section-9.6)).
    lingering: VecDeque<(Instant, OwnedFd)>,
    /// Given up when there is no other descriptor: the last one so as to accept a client and turn it
    /// away rather than have it wait for nobody, the others to serve clients.
    reserve: Vec<OwnedFd>,
    /// How many there are to be.
    wanted: usize,
}

impl Refusals {
    pub(super) fn new(notice: Arc<[u8]>, reserved: usize) -> Self {
        let mut refusals = Self {
            notice,
            lingering: VecDeque::new(),
            reserve: Vec::new(),
            wanted: reserved.saturating_add(1),
        };
        refusals.refill();
        refusals
    }

    fn refill(&mut self) {
        while self.reserve.len() < self.wanted
            && let Ok(file) = File::open("/dev/null")
        {
            self.reserve.push(file.into());
        }
    }

    /// Closes a request. It never waits.
    pub(super) fn close<R: super::Request>(&mut self, request: R, refusal: &Refusal) {
        if let Some(fd) = request.refuse() {
            self.say_farewell(fd, refusal);
        }
    }

    /// Tells a client, if there is something to tell, and closes the connection, now or soon.
    fn say_farewell(&mut self, fd: OwnedFd, refusal: &Refusal) {
        let notice = if refusal.is_told() {
            &*self.notice
        } else {
            &[]
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let told = !notice.is_empty() && send(&fd, notice, flags).is_ok();
        let _ = shutdown(&fd, Shutdown::Write);
        if told && !discard(&fd) {
            if self.lingering.len() == LINGERING {
                self.lingering.pop_front();
            }
            self.lingering.push_back((Instant::now() + LINGER, fd));
        }
    }

    /// Closes those who have had their time, and takes back what was given up. Whether there was
    /// nothing to be had.
    pub(super) fn settle(&mut self, now: Instant) -> bool {
        while let Some((until, fd)) = self.lingering.front()
            && *until <= now
        {
            discard(fd);
            self.lingering.pop_front();
        }
        self.refill();
        self.reserve.len() < self.wanted
    }

    /// When that is to be done next.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.lingering.front().map(|(until, _)| *until)
    }

    /// In a forked child: these are the parent's.
    pub(super) fn abandon_in_child(&mut self) {
        self.lingering.clear();
        self.reserve.clear();
        self.wanted = 0;
    }
}

impl Drop for Refusals {
    fn drop(&mut self) {
        for (_, fd) in &self.lingering {
            discard(fd);
        }
    }
}

/// Throws away what has arrived: closing with unread input resets the connection. Whether that was
/// all there will ever be.
fn discard(fd: &OwnedFd) -> bool {
    let mut scratch = [0; 4096];
    // No more than what the first window lets in: others wait.
    for _ in 0..16 {
        match recv(fd, &mut scratch, RecvFlags::DONTWAIT) {
            Ok((1.., _)) => {}
            Err(Errno::AGAIN) => return false,
            Ok((0, _)) | Err(_) => return true,
        }
    }
    false
}

impl<T, C, F, H> Server<T, C, F>
where
    T: Transport,
    C: Concurrency,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<T::Request>,
{
    /// Tells of somebody who was not let in, and closes the connection.
    pub(super) fn turn_away(
        &mut self,
        peer: Address,
        fd: Option<OwnedFd>,
        gate: usize,
        refusal: &Refusal,
    ) {
        self.gates[gate].is_fruitful();
        let listener = self.gates[gate].address.clone();
        let info = RequestInfo::new(self.shared.next_id(), peer, listener);
        self.shared.emit(&Event::Accepted(&info));
        self.shared.emit(&Event::Refused(&info, refusal));
        if let Some(fd) = fd {
            self.refusals.say_farewell(fd, refusal);
        }
    }

    /// Closes a request that no handler will see.
    pub(super) fn refuse(&mut self, job: Job<T::Request, F>, refusal: &Refusal) {
        self.shared.emit(&Event::Refused(job.info(), refusal));
        self.refusals.close(job.request, refusal);
    }

    /// Refuses one request that waits at a gate; `false` if none does.
    pub(super) fn refuse_next(&mut self, gate: usize, refusal: &Refusal) -> bool {
        self.intake.emptied = false;
        let got = T::get_request(&mut self.gates[gate].listener, &mut self.intake);
        self.tell_drops(gate);
        let request = match got {
            Ok(Got::Request(request, _)) => request,
            Ok(Got::Refused(peer, fd, refusal)) => {
                self.turn_away(peer, fd, gate, &refusal);
                return true;
            }
            Err(_) => return false,
        };
        let address = self.gates[gate].address.clone();
        let (id, peer) = (request.id(), request.peer().clone());
        let record = Record::enter(&self.shared, id, peer, address, None, None);
        self.shared.emit(&Event::Accepted(record.info()));
        self.shared.emit(&Event::Refused(record.info(), refusal));
        self.refusals.close(request, refusal);
        true
    }

    /// The process is out of descriptors: whether a client could be turned away all the same, so
    /// that it knows. Where clients are to wait, they do so in the kernel's queue.
    pub(super) fn makes_room_by_refusing(
        &mut self,
        gate: usize,
        errno: Errno,
        now: Instant,
    ) -> bool {
        if self.concurrency.limit().1 == AtLimit::Wait
            || T::IS_DATAGRAM
            || !matches!(errno, Errno::MFILE | Errno::NFILE)
        {
            return false;
        }
        // Those who linger have what could be of use to others.
        self.refusals.lingering.clear();
        // What a process needs besides: an eventfd, and a pidfd in its place.
        let needed = if C::FORKS { 3 } else { 1 };
        if let Some(left @ 1..) = self.refusals.reserve.len().checked_sub(needed) {
            self.refusals.reserve.truncate(left);
            // What ends next gives them back, before another server of the process takes them.
            self.shared.want_end();
            return true;
        }
        if self.refusals.reserve.pop().is_none() {
            self.refusals.refill();
            return false;
        }
        let refused = self.refuse_next(gate, &Refusal::NoDescriptors);
        self.refusals.lingering.clear();
        self.refusals.refill();
        if refused && self.progress.back_off.failed(now) {
            let address = self.gates[gate].address.clone();
            self.shared.emit(&Event::OutOfDescriptors {
                address: &address,
                error: &errno.into(),
            });
        }
        self.progress.back_off.retry_now();
        refused
    }
}
