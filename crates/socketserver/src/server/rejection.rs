//! Rejections: the message to the client, the close, and the report.

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

/// The time that a rejected client has to read its message.
const LINGER: Duration = Duration::from_secs(1);

/// The maximum number of lingering connections. One more closes the oldest.
const MAX_LINGERING: usize = 64;

/// The longest message, in bytes. It fits into the first segment of a connection.
pub(super) const NOTICE: usize = 1024;

/// The state that a server needs to reject clients.
pub(super) struct Rejector {
    /// The message; it may be empty.
    notice: Arc<[u8]>,
    /// Connections that were sent the message, and whose peers have not closed yet. A close now
    /// could reset the connection, and a reset may overtake the message ([RFC 9112,
    /// 9.6](https://www.rfc-editor.org/rfc/rfc9112#section-9.6)).
    lingering: VecDeque<(Instant, OwnedFd)>,
    /// Released when no other descriptor is left. The last one accepts a client in order to reject
    /// it, so that it does not wait without end. The others serve clients.
    reserve: Vec<OwnedFd>,
    /// The intended size of the reserve.
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

    /// Closes a request without blocking.
    pub(super) fn close<R: super::Request>(&mut self, request: R, rejection: &Rejection) {
        if let Some(fd) = request.refuse() {
            self.send_rejection(fd, rejection);
        }
    }

    /// Sends the message, if there is one, and closes the connection, now or soon.
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

    /// Closes lingering connections whose time is over, and refills the reserve. Returns true if no
    /// descriptor was available.
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

    /// Returns the time of the next such call.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.lingering.front().map(|(until, _)| *until)
    }

    /// Forgets the descriptors in a forked child, because they belong to the parent.
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

/// Discards received bytes, because closing with unread input resets the connection. Returns true
/// if the input has ended.
fn discard(fd: &OwnedFd) -> bool {
    let mut scratch = [0; 4096];
    // At most the bytes of the first window, because other clients wait.
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
    /// Reports a rejected client, and closes the connection.
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

    /// Closes a request that gets no handler.
    pub(super) fn refuse(&mut self, job: AcceptedRequest<T::Request>, rejection: &Rejection) {
        self.shared.emit(&Event::Rejected(job.info(), rejection));
        self.rejections.close(job.request, rejection);
    }

    /// Rejects one request that waits at a listener. Returns false if none waits.
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

    /// Handles a lack of descriptors. Returns true if a client could be rejected, so that it need
    /// not wait. Where the policy is to wait, clients wait in the kernel's backlog.
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
        // Descriptors of lingering connections are needed more elsewhere.
        self.rejections.lingering.clear();
        // A forked child also needs an eventfd, and a pidfd in its place.
        let needed = if C::FORKS { 3 } else { 1 };
        if let Some(left @ 1..) = self.rejections.reserve.len().checked_sub(needed) {
            self.rejections.reserve.truncate(left);
            // The next request that ends refills the reserve, before another server of the process
            // takes it.
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
