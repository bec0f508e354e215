//! A connected stream socket and its waits: the loops around `recv` and `send` that every
//! concurrency model shares.
//!
//! It knows nothing of handlers, and it does not buffer.

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

/// How much of a file the kernel is asked to send at a time: enough that the calls cost nothing
/// beside the bytes, and not so much that a peer who takes all of it is not noticed to be cut.
const AT_ONCE: usize = 1 << 20;
/// How long sendfile(2) may wait for room itself. It sends a file in several pieces, and begins its
/// timer anew with each of them: the wait that has to end is a poll(2).
const MAX_BLOCK: Duration = Duration::from_millis(1);
/// How much of a file is copied at a time where that cannot be avoided.
const COPY: usize = 32 << 10;

/// Shared by the connection, its writers, and the table of live requests.
pub struct Socket {
    park: Option<Box<dyn Park>>, // dropped before the descriptor: see `Park`
    fd: OwnedFd,
    /// Set before the socket is shut down from outside, so that the handler sees an error, no EOF.
    cut: OnceLock<CancelReason>,
    /// Raised when it is cut, for a handler that waits for something else.
    on_cut: Mutex<Vec<Weak<Notify>>>,
    /// The peer reset the connection or closed it under a write: not a fault of the handler.
    lost: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
    /// What was sent while the peer was waited for.
    sending: SendRateMeter,
    /// What the handler waits for, and since when; for who looks from outside.
    input: Waiting,
    /// The same for whatever writes, from any thread.
    output: Waiting,
    /// Since the handshake.
    #[cfg(feature = "tls")]
    tls: OnceLock<Box<tls::Session>>,
    /// The timeouts that the kernel was last told, in microseconds; 0 is none.
    kernel_read: AtomicU64,
    kernel_write: AtomicU64,
}

impl Socket {
    /// Takes over a connected socket: a blocking one without a `park`, a non-blocking one with it.
    pub(crate) fn new(fd: OwnedFd, park: Option<Box<dyn Park>>) -> Self {
        Self {
            park,
            fd,
            cut: OnceLock::new(),
            on_cut: Mutex::default(),
            lost: AtomicBool::new(false),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            sending: SendRateMeter::default(),
            input: Waiting::default(),
            output: Waiting::default(),
            #[cfg(feature = "tls")]
            tls: OnceLock::new(),
            kernel_read: AtomicU64::new(0),
            kernel_write: AtomicU64::new(0),
        }
    }

    /// Gives the descriptor up to somebody who does not park.
    pub(crate) fn into_fd(self) -> OwnedFd {
        let Self { park, fd, .. } = self;
        drop(park);
        fd
    }

    /// Bytes received and sent so far.
    pub(crate) fn byte_counts(&self) -> (u64, u64) {
        (
            self.received.load(Ordering::Relaxed),
            self.sent.load(Ordering::Relaxed),
        )
    }

    /// Bytes moved so far, without those that the peer has not confirmed yet.
    pub(crate) fn confirmed(&self) -> u64 {
        let unsent = packet_batch::unconfirmed(&self.fd).unwrap_or(0);
        self.total_bytes().saturating_sub(unsent as u64)
    }

    /// What is being waited for in a read, or between two calls of the handler.
    pub(crate) fn input(&self) -> &Waiting {
        &self.input
    }

    /// Whether its handler is at work, or has something to read that it has not come to yet: then the
    /// peer is not waited for.
    pub(crate) fn is_being_read(&self) -> bool {
        match self.input.read() {
            None => self.output.read().is_none(),
            Some(_) => self.has_input(),
        }
    }

    /// What is being waited for in a write that has found no room.
    pub(crate) fn output(&self) -> &Waiting {
        &self.output
    }

    pub(crate) fn is_disconnected(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cut().is_some()
    }

    /// Why it was cut from this side, if it was.
    pub(crate) fn cut(&self) -> Option<CancelReason> {
        self.cut.get().copied()
    }

    /// What the handler reads.
    pub(crate) fn recv(&self, buf: &mut [u8], limits: Limits) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(tls) = self.tls.get() {
            return tls.recv(self, buf, limits);
        }
        self.recv_ciphertext(buf, limits)
    }

    /// What has come over the wire.
    pub(crate) fn recv_ciphertext(&self, buf: &mut [u8], limits: Limits) -> io::Result<usize> {
        let n = self.receive(buf, limits)?;
        self.has_received(n, buf.len());
        Ok(n)
    }

    /// What has come over the wire by now; fails as [`io::ErrorKind::WouldBlock`] if nothing has.
    #[cfg(any(feature = "proxy", feature = "tls"))]
    pub(crate) fn try_recv_ciphertext(&self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.receive_now(buf, RecvFlags::empty())?;
        self.has_received(n, buf.len());
        Ok(n)
    }

    /// The same, and it stays there to be received.
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

    /// Waits for something to read, or the end of it, without reading. It may end early, with
    /// [`io::ErrorKind::Interrupted`], to let the caller look around.
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

    /// Whether something has arrived that was not read yet.
    pub(crate) fn has_input(&self) -> bool {
        has_input(&self.fd)
    }

    /// What parks whoever waits, if it is not the kernel.
    pub(crate) fn park(&self) -> Option<&dyn Park> {
        self.park.as_deref()
    }

    /// Throws away what has arrived and was not read, without waiting. `None` is end of input.
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

    /// What the handler writes.
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

    /// Sends some of a file from `offset` on, at most `count` bytes, without copying them through
    /// this process where the kernel can. 0 is the end of the file.
    pub(crate) fn send_file(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        count: u64,
        limits: Limits,
    ) -> io::Result<usize> {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(AT_ONCE);
        if !self.is_encrypted() && is_sigpipe_ignored() {
            let waits = self.park.is_none().then_some(MAX_BLOCK);
            let sent = self.send_with_rate(limits, waits, |_| {
                let mut offset = offset;
                rustix::fs::sendfile(&self.fd, file, Some(&mut offset), count)
            });
            match sent {
                // There is no sendfile(2) for this kind of file, or no position in it.
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

    /// Has `operation` send something, as soon as there is room. If it takes no flags, and so cannot be
    /// kept from waiting, nor be relied on to give up in time, it only waits `max_block`.
    fn send_with_rate(
        &self,
        limits: Limits,
        max_block: Option<Duration>,
        mut operation: impl FnMut(SendFlags) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        // Known once the first of several waits is over.
        let mut end = None;
        loop {
            // Usually there is room. Then the time that it takes is not the peer's, and nobody needs to
            // look at the clock. And after a wait in vain there may be some: the kernel wakes nobody up
            // before a good part of its buffer is free.
            if max_block.is_none()
                && let Some(sent) = self.send_now(limits, &mut operation)?
            {
                return Ok(sent);
            }
            let Some(rate) = limits.rate else {
                return self.send_within(limits, max_block, &mut operation);
            };
            // Only now, as it is full again: what found room since the last wait was read in it.
            self.sending.check(rate)?;
            // No longer than until the next look at the rate: the kernel would let one write wait
            // for as long as a single byte gets on.
            let until_check = self.sending.until_check(rate);
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
            self.sending.moved(0, began.elapsed());
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

    /// One attempt; `None` if there is no room.
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
        self.sending.moved(n, waited);
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
        // Who parks knows whether he had to; the kernel does not say.
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

    /// Waits until there is room, where nobody parks.
    fn wait_writable(&self, wait: &mut Wait) -> io::Result<()> {
        let left = wait.left().and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        match poll(&mut fds, left.as_ref()) {
            // The operation knows what is the matter if it is not room.
            Ok(1..) => Ok(()),
            Ok(0) | Err(Errno::INTR) => wait.check(self.total_bytes()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Has the peer meet a reset instead of an end, over TCP: `connect(2)` to `AF_UNSPEC` "dissolves
    /// the association". What was not yet sent is gone. There is nothing like it for a Unix socket.
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
            // The peer was faster: what was asked for is the case.
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Goes on with TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn encrypt(&self, tls: tls::Session) {
        let _ = self.tls.set(Box::new(tls));
    }

    #[cfg(feature = "tls")]
    pub(crate) fn tls(&self) -> Option<&tls::Session> {
        self.tls.get().map(|tls| &**tls)
    }

    /// Tells the peer, in the language of TLS, that no more will come. To be done before the socket
    /// is shut down for writing.
    pub(crate) fn close_notify(&self, limits: Limits) {
        #[cfg(feature = "tls")]
        if let Some(tls) = self.tls.get() {
            tls.close_notify(self, limits);
        }
        let _ = limits;
    }

    /// Ends the connection from outside: whoever waits in it wakes up with an error.
    pub(crate) fn cancel(&self, why: CancelReason) {
        let _ = self.cut.set(why);
        let _ = self.shutdown(Shutdown::Both);
        let signals = std::mem::take(&mut *self.on_cut());
        for signal in signals.iter().filter_map(Weak::upgrade) {
            signal.notify();
        }
    }

    /// Has a signal raised once the connection is cut.
    pub(crate) fn raise_if_cut(&self, signal: &Arc<Notify>) {
        {
            let mut signals = self.on_cut();
            signals.retain(|other| other.strong_count() > 0);
            signals.push(Arc::downgrade(signal));
        }
        // It may have been cut before the signal was there.
        if self.is_cancelled() {
            signal.notify();
        }
    }

    fn on_cut(&self) -> MutexGuard<'_, Vec<Weak<Notify>>> {
        self.on_cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before every operation: a peer that is always ready would otherwise never let the end be
    /// noticed.
    fn check_cancelled(&self) -> io::Result<()> {
        if self.park.as_ref().is_some_and(|park| park.is_over()) {
            let _ = self.cut.set(CancelReason::ByServer);
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

    /// Tells the kernel when to give up, where it is the kernel that parks us. A timer that is set
    /// already and is not far too short is kept, so that the usual wait costs no system call;
    /// waking up early is harmless, as [`Wait`] knows the real end.
    fn set_kernel_timeout(&self, interest: Interest, wait: &Wait) -> io::Result<()> {
        if self.park.is_some() {
            return Ok(());
        }
        // The kernel counts in ticks, and zero would mean "for ever".
        let wanted = wait.left().map(|left| left.max(Duration::from_millis(1)));
        self.set_timer(interest, wanted)
    }

    fn set_timer(&self, interest: Interest, wanted: Option<Duration>) -> io::Result<()> {
        let (known, option) = match interest {
            Interest::Read => (&self.kernel_read, Timeout::Recv),
            Interest::Write => (&self.kernel_write, Timeout::Send),
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

    /// Decides what a failed system call means: try again (`Ok`), or give up.
    fn wait_or_fail(&self, errno: Errno, interest: Interest, wait: &mut Wait) -> io::Result<()> {
        match errno {
            Errno::INTR => self.check(interest, wait),
            Errno::AGAIN => match &self.park {
                Some(park) => match park.wait(self.fd.as_fd(), interest, wait.until()) {
                    Err(e) if e.kind() == io::ErrorKind::TimedOut => self.check(interest, wait),
                    Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {
                        let _ = self.cut.set(CancelReason::ByServer);
                        Err(e)
                    }
                    other => other,
                },
                None => self.check(interest, wait),
            },
            _ => Err(self.failed(errno)),
        }
    }

    /// A wait was interrupted, or a timer ran out: an error if the time is over. What has arrived is
    /// read before the clock is believed: this process may not have run for a while, after a stop by a
    /// signal for example.
    fn expired(&self, interest: Interest, wait: &mut Wait) -> io::Result<()> {
        match wait.check(self.total_bytes()) {
            Err(_) if interest == Interest::Read && self.has_input() => Ok(()),
            known => known,
        }
    }

    /// What reads and writes say once it was cut.
    pub(crate) fn cancelled(&self) -> io::Error {
        let why = match self.cut() {
            Some(CancelReason::SlowConsumer) => {
                "the connection was cut by this server: the peer did not read what was sent to it"
            }
            Some(CancelReason::Displaced) => {
                "the connection was cut by this server: it used nothing, and others needed its place"
            }
            Some(CancelReason::ByServer) | None => return cancelled(),
        };
        io::Error::new(io::ErrorKind::ConnectionAborted, why)
    }

    fn failed(&self, errno: Errno) -> io::Error {
        if self.is_cancelled() {
            return self.cancelled();
        }
        if matches!(
            errno,
            Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED | Errno::TIMEDOUT
        ) {
            self.lost.store(true, Ordering::Relaxed);
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

    fn is_disconnected(&self) {
        self.lost.store(true, Ordering::Relaxed);
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

/// sendfile(2) has no `MSG_NOSIGNAL`: a peer that has gone would end a process that does not ignore
/// SIGPIPE. Rust's runtime ignores it at the start of a program, and only a library in somebody
/// else's is without; /proc/self/status tells, once.
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

/// Why a connection was cut from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// The server was told to, or its time was over.
    ByServer,
    /// The peer did not read what was sent to it.
    SlowConsumer,
    /// Others needed its place, and it used nothing.
    Displaced,
}

impl From<CancelReason> for EndReason {
    fn from(cut: CancelReason) -> Self {
        match cut {
            CancelReason::ByServer => Self::Cancelled,
            CancelReason::SlowConsumer => Self::SlowConsumer,
            CancelReason::Displaced => Self::Displaced,
        }
    }
}

/// The error of every read and write on a connection that was cut.
pub(crate) fn cancelled() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the connection was cut by this server",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MinRate;
    use std::os::unix::net::UnixStream;

    fn no_slower_than(rate: MinRate) -> Limits {
        Limits {
            wait: Some(Duration::from_secs(60)),
            rate: Some(rate),
            ..Limits::default()
        }
    }

    /// The time that a thread was kept from running is not its peer's, and a timer of the kernel's
    /// costs a system call: neither is there before somebody has to wait.
    #[test]
    fn who_finds_room_has_not_waited() {
        let (near, far) = UnixStream::pair().unwrap();
        let socket = Socket::new(near.into(), None);
        let rate = MinRate::bytes_per_second(1).grace(Duration::from_millis(20));
        let limits = no_slower_than(rate);
        let timer = || socket.kernel_write.load(Ordering::Relaxed);
        assert_eq!(socket.send(&[IoSlice::new(b"x")], limits).unwrap(), 1);
        assert_eq!(timer(), 0);
        // Until nobody reads.
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
    fn a_deadline_ends_even_what_would_find_room() {
        let (near, _far) = UnixStream::pair().unwrap();
        let socket = Socket::new(near.into(), None);
        let limits = Limits {
            deadline: Some(Instant::now()),
            ..Limits::default()
        };
        let error = socket.send(&[IoSlice::new(b"x")], limits).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    /// Three times as fast as it has to be, and always behind.
    fn reads_fast_enough(size: usize) {
        use std::io::Read;
        let (near, far) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 3000];
            // What a busy machine makes late is made up for.
            let mut due = Instant::now();
            while (&far).read_exact(&mut piece).is_ok() {
                due += Duration::from_millis(10);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        let socket = Socket::new(near.into(), None);
        let rate = MinRate::bytes_per_second(90_000).grace(Duration::from_millis(300));
        let limits = no_slower_than(rate);
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
    fn who_reads_large_messages_fast_enough_is_not_cut() {
        reads_fast_enough(80_000);
    }

    #[test]
    fn who_reads_small_messages_fast_enough_is_not_cut() {
        reads_fast_enough(1000);
    }
}
