//! A connected stream socket, with the `recv` and `send` loops that every concurrency model shares.
//!
//! This module does not know handlers, and does not buffer.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::EndReason;
use crate::notify::Notify;
use crate::park::{Interest, Park};
use crate::timeouts::{Limits, SendRateMeter, Wait, timed_out};
#[cfg(feature = "tls")]
use crate::tls;
use crate::waiting::{Awaited, Waiting};

/// Maximum number of bytes that one `sendfile(2)` call sends. Large enough that the cost of the
/// calls is negligible; small enough that a cancellation is noticed while a fast peer reads.
const AT_ONCE: usize = 1 << 20;
/// Maximum wait within `sendfile(2)`. The call sends a file in several pieces and restarts its
/// timer with each piece, so the real wait is a poll(2).
const MAX_BLOCK: Duration = Duration::from_millis(1);
/// Maximum number of bytes that are copied at a time if `sendfile(2)` cannot be used.
const COPY: usize = 32 << 10;

/// The socket of a connection, shared by the connection, its write halves, and the table of active
/// requests.
pub struct Socket {
    park: Option<Box<dyn Park>>, // dropped before the descriptor: see `Park`
    fd: OwnedFd,
    /// The reason of a cancellation. Set before the socket is shut down, so that the handler reads
    /// an error instead of the end of input.
    cancel_reason: OnceLock<CancelReason>,
    /// Notified on cancellation, for handlers that do not wait for the socket.
    cancel_signals: Mutex<Vec<Weak<Notify>>>,
    /// True if the peer reset the connection, or closed it during a write: not an error of the
    /// handler.
    disconnected: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
    /// Rate of the bytes sent while the peer was awaited.
    send_rate: SendRateMeter,
    /// The input that the handler waits for, and since when, for observers on other threads.
    input: Waiting,
    /// The same for writes of any thread.
    output: Waiting,
    /// The TLS session, after the handshake.
    #[cfg(feature = "tls")]
    tls: OnceLock<Box<tls::Session>>,
    /// The timeouts last set on the socket, in microseconds; 0 is none.
    kernel_read_timeout: AtomicU64,
    kernel_write_timeout: AtomicU64,
}

impl Socket {
    /// Creates a socket from a connected descriptor, which is blocking without a `park` and
    /// non-blocking with a `park`.
    pub(crate) fn new(fd: OwnedFd, park: Option<Box<dyn Park>>) -> Self {
        Self {
            park,
            fd,
            cancel_reason: OnceLock::new(),
            cancel_signals: Mutex::default(),
            disconnected: AtomicBool::new(false),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            send_rate: SendRateMeter::default(),
            input: Waiting::default(),
            output: Waiting::default(),
            #[cfg(feature = "tls")]
            tls: OnceLock::new(),
            kernel_read_timeout: AtomicU64::new(0),
            kernel_write_timeout: AtomicU64::new(0),
        }
    }

    /// Returns the descriptor, detached from its `park`.
    pub(crate) fn into_fd(self) -> OwnedFd {
        let Self { park, fd, .. } = self;
        drop(park);
        fd
    }

    /// Returns the number of bytes received and sent.
    pub(crate) fn byte_counts(&self) -> (u64, u64) {
        (
            self.received.load(Ordering::Relaxed),
            self.sent.load(Ordering::Relaxed),
        )
    }

    /// Returns the number of transferred bytes without the sent bytes that the peer has not
    /// acknowledged.
    pub(crate) fn confirmed(&self) -> u64 {
        let unsent = packet_batch::unconfirmed(&self.fd).unwrap_or(0);
        self.total_bytes().saturating_sub(unsent as u64)
    }

    /// Returns the current wait for input: in a read, or while the connection is suspended.
    pub(crate) fn input(&self) -> &Waiting {
        &self.input
    }

    /// Returns true if the handler is running, or has unread input. The server then does not wait
    /// for the peer.
    pub(crate) fn is_being_read(&self) -> bool {
        match self.input.read() {
            None => self.output.read().is_none(),
            Some(_) => self.has_input(),
        }
    }

    /// Returns the current wait for room in the send buffer.
    pub(crate) fn output(&self) -> &Waiting {
        &self.output
    }

    pub(crate) fn is_disconnected(&self) -> bool {
        self.disconnected.load(Ordering::Relaxed)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cut().is_some()
    }

    /// Returns the reason if the server cancelled the connection.
    pub(crate) fn cut(&self) -> Option<CancelReason> {
        self.cancel_reason.get().copied()
    }

    /// Receives bytes for the handler, decrypted if the connection uses TLS.
    pub(crate) fn recv(&self, buf: &mut [u8], limits: Limits) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(tls) = self.tls.get() {
            return tls.recv(self, buf, limits);
        }
        self.recv_ciphertext(buf, limits)
    }

    /// Receives raw bytes from the socket.
    pub(crate) fn recv_ciphertext(&self, buf: &mut [u8], limits: Limits) -> io::Result<usize> {
        let n = self.receive(buf, limits)?;
        self.has_received(n, buf.len());
        Ok(n)
    }

    /// Receives raw bytes without waiting. Returns [`io::ErrorKind::WouldBlock`] if none have
    /// arrived.
    #[cfg(any(feature = "proxy", feature = "tls"))]
    pub(crate) fn try_recv_ciphertext(&self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.receive_now(buf, RecvFlags::empty())?;
        self.has_received(n, buf.len());
        Ok(n)
    }

    /// Peeks at raw bytes without waiting; they stay in the kernel.
    #[cfg(any(feature = "proxy", feature = "tls"))]
    pub(crate) fn try_peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive_now(buf, RecvFlags::PEEK)
    }

    #[cfg(any(feature = "proxy", feature = "tls"))]
    fn receive_now(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        self.check_cancelled()?;
        loop {
            match rustix::net::recv(&self.fd, &mut *buf, flags | RecvFlags::DONTWAIT) {
                Ok((0, _)) if self.is_cancelled() => return Err(self.cancelled()),
                Ok((n, _)) => return Ok(n),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno)),
            }
        }
    }

    fn has_received(&self, n: usize, room: usize) {
        self.received.fetch_add(n as u64, Ordering::Relaxed);
        if let Some(park) = &self.park {
            park.record_progress(n > 0 && n < room);
        }
    }

    fn receive(&self, buf: &mut [u8], limits: Limits) -> io::Result<usize> {
        let mut wait = Wait::start(limits, self.total_bytes())?;
        loop {
            self.check_cancelled()?;
            self.set_kernel_timeout(Interest::Read, &wait)?;
            if self.park.as_ref().is_some_and(|park| park.is_exhausted()) {
                self.wait_or_fail(Errno::AGAIN, Interest::Read, &mut wait)?;
            }
            match rustix::net::recv(&self.fd, &mut *buf, RecvFlags::empty()) {
                Ok((0, _)) if self.is_cancelled() => return Err(self.cancelled()),
                Ok((n, _)) => return Ok(n),
                Err(errno) => self.wait_or_fail(errno, Interest::Read, &mut wait)?,
            }
        }
    }

    /// Waits for input or its end, without reading. May end early with
    /// [`io::ErrorKind::Interrupted`], so that the caller can check its state.
    pub(crate) fn wait_readable(&self, limits: Limits) -> io::Result<()> {
        let mut wait = Wait::start(limits, self.total_bytes())?;
        self.set_kernel_timeout(Interest::Read, &wait)?;
        let mut byte = [0];
        match rustix::net::recv(&self.fd, &mut byte, RecvFlags::PEEK) {
            Ok((0, _)) if self.is_cancelled() => Err(self.cancelled()),
            Ok(_) => Ok(()),
            Err(errno) => {
                self.wait_or_fail(errno, Interest::Read, &mut wait)?;
                Err(io::ErrorKind::Interrupted.into())
            }
        }
    }

    /// Returns true if unread input has arrived.
    pub(crate) fn has_input(&self) -> bool {
        has_input(&self.fd)
    }

    /// Returns the `park` of the connection, unless the kernel blocks the thread.
    pub(crate) fn park(&self) -> Option<&dyn Park> {
        self.park.as_deref()
    }

    /// Discards received bytes without waiting. `None` is the end of input.
    pub(crate) fn discard(&self, scratch: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::net::recv(&self.fd, &mut *scratch, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Ok(None),
                Ok((n, _)) => return Ok(Some(n)),
                Err(Errno::AGAIN) => return Ok(Some(0)),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends bytes of the handler, encrypted if the connection uses TLS.
    pub(crate) fn send(&self, bufs: &[IoSlice<'_>], limits: Limits) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(tls) = self.tls.get() {
            return tls.send(self, bufs, limits);
        }
        self.send_raw(bufs, limits)
    }

    fn send_raw(&self, bufs: &[IoSlice<'_>], limits: Limits) -> io::Result<usize> {
        self.send_with_rate(limits, None, |flags| match bufs {
            [one] => rustix::net::send(&self.fd, one, flags),
            many => {
                let mut control = SendAncillaryBuffer::default();
                rustix::net::sendmsg(&self.fd, many, &mut control, flags)
            }
        })
    }

    /// Sends at most `count` bytes of a file from `offset` on. Uses `sendfile(2)` without a copy
    /// through this process if possible. 0 is the end of the file.
    pub(crate) fn send_file(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        count: u64,
        limits: Limits,
    ) -> io::Result<usize> {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(AT_ONCE);
        if !self.is_encrypted() && is_sigpipe_ignored() {
            let max_block = self.park.is_none().then_some(MAX_BLOCK);
            let sent = self.send_with_rate(limits, max_block, |_| {
                let mut offset = offset;
                rustix::fs::sendfile(&self.fd, file, Some(&mut offset), count)
            });
            match sent {
                // `sendfile(2)` does not support this kind of file, or the file has no position.
                Err(error) if is_unsupported(&error) => {}
                sent => return sent,
            }
        }
        let mut copy = vec![0; count.min(COPY)];
        let n = rustix::io::pread(file, &mut copy[..], offset)?;
        match n {
            0 => Ok(0),
            n => self.send(&[IoSlice::new(&copy[..n])], limits),
        }
    }

    fn is_encrypted(&self) -> bool {
        #[cfg(feature = "tls")]
        let is_encrypted = self.tls.get().is_some();
        #[cfg(not(feature = "tls"))]
        let is_encrypted = false;
        is_encrypted
    }

    /// Calls `operation` until it has sent at least one byte, and waits for room in between. An
    /// operation that cannot take `MSG_DONTWAIT` (`sendfile(2)`) blocks for at most `max_block` per
    /// call.
    fn send_with_rate(
        &self,
        limits: Limits,
        max_block: Option<Duration>,
        mut operation: impl FnMut(SendFlags) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        // Set after the first of several waits.
        let mut end = None;
        loop {
            // Usually the buffer has room. Then the time of the call does not count for the peer,
            // and no clock is read. After a timed-out wait, some room may exist, because the kernel
            // wakes a writer only when a large part of its buffer is free.
            if max_block.is_none()
                && let Some(sent) = self.send_now(limits, &mut operation)?
            {
                return Ok(sent);
            }
            let Some(rate) = limits.rate else {
                return self.send_within(limits, max_block, &mut operation);
            };
            // Checked only now that the buffer is full again: bytes that found room since the last
            // wait were read during that wait.
            self.send_rate.check(rate)?;
            // Waits at most until the next check of the rate. The kernel would let one write wait
            // as long as single bytes make progress.
            let until_check = self.send_rate.until_check(rate);
            let left = match (end, limits.wait) {
                (Some(end), _) => Some(Instant::saturating_duration_since(&end, Instant::now())),
                (None, wait) => wait,
            };
            let began = Instant::now();
            let attempt = Limits {
                wait: Some(left.map_or(until_check, |left| left.min(until_check))),
                ..limits
            };
            let sent = self.send_within(attempt, max_block, &mut operation);
            match &sent {
                Err(error)
                    if error.kind() == io::ErrorKind::TimedOut && !self.is_disconnected() => {}
                _ => return sent,
            }
            self.send_rate.moved(0, began.elapsed());
            end = end.or_else(|| began.checked_add(limits.wait?));
            let now = Instant::now();
            if [end, limits.deadline]
                .into_iter()
                .flatten()
                .any(|end| end <= now)
            {
                return sent;
            }
        }
    }

    /// Tries to send once. Returns `None` if there is no room.
    fn send_now(
        &self,
        limits: Limits,
        operation: &mut impl FnMut(SendFlags) -> rustix::io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        if limits.deadline.is_some_and(|end| end <= Instant::now()) {
            return Err(timed_out());
        }
        self.check_cancelled()?;
        match operation(SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(n) => {
                self.has_sent(n, Duration::ZERO);
                Ok(Some(n))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(self.failed(errno)),
        }
    }

    fn has_sent(&self, n: usize, waited: Duration) {
        self.send_rate.moved(n, waited);
        self.sent.fetch_add(n as u64, Ordering::Relaxed);
        if let Some(park) = &self.park {
            park.record_progress(false);
        }
    }

    fn send_within(
        &self,
        limits: Limits,
        max_block: Option<Duration>,
        operation: &mut impl FnMut(SendFlags) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        let mut wait = Wait::start(limits, self.total_bytes())?;
        let began = wait.clock();
        let _waiting = self.output.for_now(Awaited::Room);
        // A `park` reports whether it waited; the kernel does not.
        let mut has_waited = self.park.is_none();
        loop {
            self.check_cancelled()?;
            match max_block {
                Some(time) => self.set_timer(Interest::Write, Some(time))?,
                None => self.set_kernel_timeout(Interest::Write, &wait)?,
            }
            match operation(SendFlags::NOSIGNAL) {
                Ok(n) => {
                    let began = began.filter(|_| has_waited && limits.rate.is_some());
                    let waited = began.map_or(Duration::ZERO, |began| began.elapsed());
                    self.has_sent(n, waited);
                    return Ok(n);
                }
                Err(Errno::AGAIN) if max_block.is_some() => self.wait_writable(&mut wait)?,
                Err(errno) => {
                    self.wait_or_fail(errno, Interest::Write, &mut wait)?;
                    has_waited = true;
                }
            }
        }
    }

    /// Waits for room in the send buffer with poll(2), for sockets without a `park`.
    fn wait_writable(&self, wait: &mut Wait) -> io::Result<()> {
        let left = wait.left().and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        match poll(&mut fds, left.as_ref()) {
            // If an error made the socket ready, the operation returns the error.
            Ok(1..) => Ok(()),
            Ok(0) | Err(Errno::INTR) => wait.check(self.total_bytes()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Resets a TCP connection, so that the peer reads an error instead of the end of input:
    /// `connect(2)` to `AF_UNSPEC` "dissolves the association". Unsent bytes are lost. Unix sockets
    /// have no equivalent.
    #[cfg(feature = "http")]
    pub(crate) fn reset(&self) {
        let _ = rustix::net::connect_unspec(&self.fd);
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let (Some(tls), Shutdown::Read | Shutdown::Both) = (self.tls.get(), how) {
            tls.end_input();
        }
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        match rustix::net::shutdown(&self.fd, how) {
            // The peer disconnected first; the requested state is reached.
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Encrypts all further data with TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn encrypt(&self, tls: tls::Session) {
        let _ = self.tls.set(Box::new(tls));
    }

    #[cfg(feature = "tls")]
    pub(crate) fn tls(&self) -> Option<&tls::Session> {
        self.tls.get().map(|tls| &**tls)
    }

    /// Sends close_notify if the connection uses TLS. Must be called before the socket is shut down
    /// for writing.
    pub(crate) fn close_notify(&self, limits: Limits) {
        #[cfg(feature = "tls")]
        if let Some(tls) = self.tls.get() {
            tls.close_notify(self, limits);
        }
        let _ = limits;
    }

    /// Cancels the connection: a thread that waits for the socket wakes up with an error.
    pub(crate) fn cancel(&self, reason: CancelReason) {
        let _ = self.cancel_reason.set(reason);
        let _ = self.shutdown(Shutdown::Both);
        let signals = std::mem::take(&mut *self.cancel_signals());
        for signal in signals.iter().filter_map(Weak::upgrade) {
            signal.notify();
        }
    }

    /// Notifies `signal` when the connection is cancelled.
    pub(crate) fn notify_on_cancel(&self, signal: &Arc<Notify>) {
        {
            let mut signals = self.cancel_signals();
            signals.retain(|other| other.strong_count() > 0);
            signals.push(Arc::downgrade(signal));
        }
        // The connection may have been cancelled before the signal was added.
        if self.is_cancelled() {
            signal.notify();
        }
    }

    fn cancel_signals(&self) -> MutexGuard<'_, Vec<Weak<Notify>>> {
        self.cancel_signals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks for a cancellation. Called before every operation, because a connection to a peer
    /// that is always ready never waits.
    fn check_cancelled(&self) -> io::Result<()> {
        if self.park.as_ref().is_some_and(|park| park.is_over()) {
            let _ = self.cancel_reason.set(CancelReason::ByServer);
        }
        if self.is_cancelled() {
            return Err(self.cancelled());
        }
        Ok(())
    }

    fn total_bytes(&self) -> u64 {
        let (received, sent) = self.byte_counts();
        received + sent
    }

    /// Sets the kernel's timeout if the kernel blocks the thread. Keeps a timeout that is already
    /// set and not far too short, so that a typical wait costs no system call. Waking up early is
    /// harmless, because [`Wait`] knows the real end.
    fn set_kernel_timeout(&self, interest: Interest, wait: &Wait) -> io::Result<()> {
        if self.park.is_some() {
            return Ok(());
        }
        // The kernel counts in ticks, and zero would disable the timeout.
        let wanted = wait.left().map(|left| left.max(Duration::from_millis(1)));
        self.set_timer(interest, wanted)
    }

    fn set_timer(&self, interest: Interest, wanted: Option<Duration>) -> io::Result<()> {
        let (known, option) = match interest {
            Interest::Read => (&self.kernel_read_timeout, Timeout::Recv),
            Interest::Write => (&self.kernel_write_timeout, Timeout::Send),
        };
        let micros = wanted.map_or(0, |w| u64::try_from(w.as_micros()).unwrap_or(u64::MAX));
        let set = known.load(Ordering::Relaxed);
        if set == micros || (set < micros && set > micros / 2) {
            return Ok(());
        }
        set_socket_timeout(&self.fd, option, wanted)?;
        known.store(micros, Ordering::Relaxed);
        Ok(())
    }

    /// Handles an error of a system call: waits and returns `Ok` to retry, or returns the error.
    fn wait_or_fail(&self, errno: Errno, interest: Interest, wait: &mut Wait) -> io::Result<()> {
        match errno {
            Errno::INTR => self.expired(interest, wait),
            Errno::AGAIN => match &self.park {
                Some(park) => match park.wait(self.fd.as_fd(), interest, wait.until()) {
                    Err(e) if e.kind() == io::ErrorKind::TimedOut => self.expired(interest, wait),
                    Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {
                        let _ = self.cancel_reason.set(CancelReason::ByServer);
                        Err(e)
                    }
                    other => other,
                },
                None => self.expired(interest, wait),
            },
            _ => Err(self.failed(errno)),
        }
    }

    /// Handles an interrupted wait or an expired timer. Returns an error if the time is over and no
    /// data has arrived. The check for data comes before the clock, because the process may have
    /// been stopped by a signal for a while.
    fn expired(&self, interest: Interest, wait: &mut Wait) -> io::Result<()> {
        match wait.check(self.total_bytes()) {
            Err(_) if interest == Interest::Read && self.has_input() => Ok(()),
            known => known,
        }
    }

    /// Returns the error of reads and writes on the cancelled connection.
    pub(crate) fn cancelled(&self) -> io::Error {
        let message = match self.cut() {
            Some(CancelReason::SlowConsumer) => {
                "the server cancelled the connection: the peer did not read what was sent to it"
            }
            Some(CancelReason::Displaced) => {
                "the server cancelled the connection: it was idle, and new clients needed its slot"
            }
            Some(CancelReason::ByServer) | None => return cancelled(),
        };
        io::Error::new(io::ErrorKind::ConnectionAborted, message)
    }

    fn failed(&self, errno: Errno) -> io::Error {
        if self.is_cancelled() {
            return self.cancelled();
        }
        if matches!(
            errno,
            Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED | Errno::TIMEDOUT
        ) {
            self.disconnected.store(true, Ordering::Relaxed);
        }
        errno.into()
    }
}

#[cfg(feature = "tls")]
impl tls::Wire for Socket {
    fn recv(&self, buf: &mut [u8], limits: Limits) -> io::Result<usize> {
        self.recv_ciphertext(buf, limits)
    }

    fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.try_recv_ciphertext(buf)
    }

    fn send(&self, bytes: &[u8], limits: Limits) -> io::Result<usize> {
        self.send_raw(&[IoSlice::new(bytes)], limits)
    }

    fn mark_disconnected(&self) {
        self.disconnected.store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("fd", &self.fd)
            .finish_non_exhaustive()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether bytes have arrived that were not read yet. A look with `MSG_PEEK` would take an error, a
/// reset for example, away from the read that has to meet it.
pub(crate) fn has_input(socket: impl AsFd) -> bool {
    let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::new(&socket, PollFlags::IN | PollFlags::RDHUP)];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(1..) => {
            let found = fds[0].revents();
            // An end and an error are reported as input as well.
            match found.intersects(ended) {
                true => matches!(ioctl_fionread(&socket), Ok(1..)),
                false => found.contains(PollFlags::IN),
            }
        }
        _ => false,
    }
}

/// Returns true if the process ignores SIGPIPE. sendfile(2) has no `MSG_NOSIGNAL`: a peer that has
/// disconnected would end a process that does not ignore SIGPIPE. Rust's runtime ignores the signal
/// at the start of a program; only a library in a program of another language may run without this.
/// The result is read once from /proc/self/status.
fn is_sigpipe_ignored() -> bool {
    static IS_IGNORED: OnceLock<bool> = OnceLock::new();
    *IS_IGNORED.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        // SIGPIPE is 13, and the first signal is bit 0: signal(7), proc(5).
        mask.is_some_and(|mask| mask & (1 << 12) != 0)
    })
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INVAL | Errno::NOSYS | Errno::SPIPE | Errno::OPNOTSUPP)
    )
}

/// The reason of a cancellation by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// A cancellation by the application or at the drain deadline.
    ByServer,
    /// The peer did not read what was sent to it.
    SlowConsumer,
    /// The connection was idle, and new clients needed its slot.
    Displaced,
}

impl From<CancelReason> for EndReason {
    fn from(reason: CancelReason) -> Self {
        match reason {
            CancelReason::ByServer => Self::Cancelled,
            CancelReason::SlowConsumer => Self::SlowConsumer,
            CancelReason::Displaced => Self::Displaced,
        }
    }
}

/// Returns the error of every read and write on a cancelled connection.
pub(crate) fn cancelled() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the server cancelled the connection",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MinRate;
    use std::os::unix::net::UnixStream;

    fn with_rate(rate: MinRate) -> Limits {
        Limits {
            wait: Some(Duration::from_secs(60)),
            rate: Some(rate),
            ..Limits::default()
        }
    }

    /// A send with room must not count as a wait for the peer, because the thread may have been
    /// preempted. It must not set a kernel timer, which costs a system call.
    #[test]
    fn send_with_room_sets_no_timer() {
        let (near, far) = UnixStream::pair().unwrap();
        let socket = Socket::new(near.into(), None);
        let rate = MinRate::bytes_per_second(1).grace(Duration::from_millis(20));
        let limits = with_rate(rate);
        let timer = || socket.kernel_write_timeout.load(Ordering::Relaxed);
        assert_eq!(socket.send(&[IoSlice::new(b"x")], limits).unwrap(), 1);
        assert_eq!(timer(), 0);
        // Fill the buffers until a send times out, because the peer does not read.
        let much = vec![0; 1 << 20];
        let slow = loop {
            match socket.send(&[IoSlice::new(&much)], limits) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(slow.kind(), io::ErrorKind::TimedOut);
        assert_ne!(timer(), 0);
        drop(far);
    }

    #[test]
    fn past_deadline_fails_a_send_with_room() {
        let (near, _far) = UnixStream::pair().unwrap();
        let socket = Socket::new(near.into(), None);
        let limits = Limits {
            deadline: Some(Instant::now()),
            ..Limits::default()
        };
        let error = socket.send(&[IoSlice::new(b"x")], limits).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    /// Sends to a peer that reads three times as fast as the minimum rate, while the send buffer is
    /// always full.
    fn check_fast_reader_is_not_cancelled(size: usize) {
        use std::io::Read;
        let (near, far) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 3000];
            // The reader catches up on delays of a busy machine.
            let mut due = Instant::now();
            while (&far).read_exact(&mut piece).is_ok() {
                due += Duration::from_millis(10);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        let socket = Socket::new(near.into(), None);
        let rate = MinRate::bytes_per_second(90_000).grace(Duration::from_millis(300));
        let limits = with_rate(rate);
        let message = vec![0; size];
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            let mut left = &message[..];
            while !left.is_empty() {
                let sent = socket.send(&[IoSlice::new(left)], limits).unwrap();
                left = &left[sent..];
            }
        }
        drop(socket);
        reader.join().unwrap();
    }

    #[test]
    fn reader_of_large_messages_above_the_minimum_rate_is_not_cancelled() {
        check_fast_reader_is_not_cancelled(80_000);
    }

    #[test]
    fn reader_of_small_messages_above_the_minimum_rate_is_not_cancelled() {
        check_fast_reader_is_not_cancelled(1000);
    }
}
