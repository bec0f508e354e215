//! Turning clients away: what they are told, how they are closed, and who is told of it.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::Server;
use super::handle::{RequestGuard, RequestInfo};
use super::pending::AcceptedRequest;
use super::session::sealed::Request as _;
use super::task::Task;
use crate::Address;
use crate::concurrency::{Concurrency, OverloadPolicy};
use crate::event::{Event, Rejection};
use crate::transport::{Accepted, Transport};

/// How long a client that was told something has to take it.
const LINGER: Duration = Duration::from_secs(1);

/// So many may linger. The oldest is closed when there is one more.
const MAX_LINGERING: usize = 64;

/// The longest notice, in bytes: the first segment of a connection takes it.
pub(super) const NOTICE: usize = 1024;

/// What a server needs to turn clients away.
pub(super) struct Rejector {
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

impl Rejector {
    pub(super) fn new(notice: Arc<[u8]>, reserved: usize) -> Self {
        let mut rejections = Self {
            notice,
            lingering: VecDeque::new(),
            reserve: Vec::new(),
            wanted: reserved.saturating_add(1),
        };
        rejections.refill();
        rejections
    }

    fn refill(&mut self) {
        while self.reserve.len() < self.wanted
            && let Ok(file) = File::open("/dev/null")
        {
            self.reserve.push(file.into());
        }
    }

    /// Closes a request. It never waits.
    pub(super) fn close<R: super::Request>(&mut self, request: R, rejection: &Rejection) {
        if let Some(fd) = request.refuse() {
            self.send_rejection(fd, rejection);
        }
    }

    /// Tells a client, if there is something to tell, and closes the connection, now or soon.
    fn send_rejection(&mut self, fd: OwnedFd, rejection: &Rejection) {
        let notice = if rejection.is_told() {
            &*self.notice
        } else {
            &[]
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let told = !notice.is_empty() && send(&fd, notice, flags).is_ok();
        let _ = shutdown(&fd, Shutdown::Write);
        if told && !discard(&fd) {
            if self.lingering.len() == MAX_LINGERING {
                self.lingering.pop_front();
            }
            self.lingering.push_back((Instant::now() + LINGER, fd));
        }
    }

    /// Closes those who have had their time, and takes back what was given up. Whether there was
    /// nothing to be had.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
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

impl Drop for Rejector {
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

impl<T: Transport, C: Concurrency> Server<T, C> {
    /// Tells of somebody who was not let in, and closes the connection.
    pub(super) fn reject(
        &mut self,
        peer: Address,
        fd: Option<OwnedFd>,
        listener: usize,
        rejection: &Rejection,
    ) {
        self.listeners[listener].reset_empty_accepts();
        let listener = self.listeners[listener].address.clone();
        let info = RequestInfo::new(self.shared.next_id(), peer, listener);
        self.shared.emit(&Event::Accepted(&info));
        self.shared.emit(&Event::Rejected(&info, rejection));
        if let Some(fd) = fd {
            self.rejections.send_rejection(fd, rejection);
        }
    }

    /// Closes a request that no handler will see.
    pub(super) fn refuse(&mut self, job: AcceptedRequest<T::Request>, rejection: &Rejection) {
        self.shared.emit(&Event::Rejected(job.info(), rejection));
        self.rejections.close(job.request, rejection);
    }

    /// Refuses one request that waits at a gate; `false` if none does.
    pub(super) fn refuse_next(&mut self, listener: usize, rejection: &Rejection) -> bool {
        self.accept_context.emptied = false;
        let got = T::get_request(
            &mut self.listeners[listener].listener,
            &mut self.accept_context,
        );
        self.set_recv_drop_count(listener);
        let request = match got {
            Ok(Accepted::Request(request, _)) => request,
            Ok(Accepted::Rejected(peer, fd, rejection)) => {
                self.reject(peer, fd, listener, &rejection);
                return true;
            }
            Err(_) => return false,
        };
        let address = self.listeners[listener].address.clone();
        let (id, peer) = (request.id(), request.peer().clone());
        let record = RequestGuard::enter(&self.shared, id, peer, address, None, None);
        self.shared.emit(&Event::Accepted(record.info()));
        self.shared.emit(&Event::Rejected(record.info(), rejection));
        self.rejections.close(request, rejection);
        true
    }

    /// The process is out of descriptors: whether a client could be turned away all the same, so
    /// that it knows. Where clients are to wait, they do so in the kernel's queue.
    pub(super) fn makes_room_by_refusing(
        &mut self,
        listener: usize,
        errno: Errno,
        now: Instant,
    ) -> bool {
        if self.concurrency.limit().1 == OverloadPolicy::Wait
            || T::IS_DATAGRAM
            || !matches!(errno, Errno::MFILE | Errno::NFILE)
        {
            return false;
        }
        // Those who linger have what could be of use to others.
        self.rejections.lingering.clear();
        // What a process needs besides: an eventfd, and a pidfd in its place.
        let needed = if C::FORKS { 3 } else { 1 };
        if let Some(left @ 1..) = self.rejections.reserve.len().checked_sub(needed) {
            self.rejections.reserve.truncate(left);
            // What ends next gives them back, before another server of the process takes them.
            self.shared.request_wakeup();
            return true;
        }
        if self.rejections.reserve.pop().is_none() {
            self.rejections.refill();
            return false;
        }
        let refused = self.refuse_next(listener, &Rejection::NoDescriptors);
        self.rejections.lingering.clear();
        self.rejections.refill();
        if refused && self.progress.back_off.failed(now) {
            let address = self.listeners[listener].address.clone();
            self.shared.emit(&Event::OutOfDescriptors {
                address: &address,
                error: &errno.into(),
            });
        }
        self.progress.back_off.retry_now();
        refused
    }
}
