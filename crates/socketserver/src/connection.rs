//! The connection that a stream handler receives: one connected peer, over TCP or a Unix stream
//! socket.

use std::fmt;
use std::io::{self, BufRead, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

#[cfg(feature = "proxy")]
use crate::ProxyHeader;
use crate::address::{Address, Credentials};
use crate::event::EndReason;
use crate::park::give_way;
use crate::server::{RequestId, ServerHandle};
use crate::socket::Socket;
use crate::timeouts::{Limits, Timeouts, earliest, nonzero};
#[cfg(feature = "tls")]
use crate::tls;
use crate::waiting::Awaited;

/// A connection to one peer, with blocking reads and writes.
///
/// * [`Read`] reads received bytes directly into the caller's buffer. [`BufRead`] (`read_line`,
///   `lines`, ...) allocates an 8 KiB buffer on the first call that needs the buffer. `read`
///   returns the buffered bytes first, so both traits can be mixed. `read_line` and `read_until`
///   have no length limit: apply [`Read::take`] if the peer is not trusted.
/// * [`Write`] is unbuffered. Bytes that `write` accepted are in the kernel's send buffer, and
///   `flush` does nothing. Wrap the connection in [`std::io::BufWriter`] to write many small
///   pieces.
/// * The server's [`Timeouts`], or the timeouts set on this connection, bound every wait. A read or
///   write that exceeds a limit fails with [`io::ErrorKind::TimedOut`]. A signal never interrupts a
///   read or write.
/// * At the end of the request, the server half-closes the connection before it closes the socket,
///   so that no written data is lost. The server can cancel an active connection: reads and writes
///   then fail with [`io::ErrorKind::ConnectionAborted`].
pub struct Connection {
    socket: Arc<Socket>,
    peer: Address,
    /// The PROXY protocol header of a trusted proxy.
    #[cfg(feature = "proxy")]
    proxied: Option<Box<ProxyHeader>>,
    server: ServerHandle,
    id: RequestId,
    /// The server's timeouts, shared by all connections until a handler changes its own copy.
    timeouts: Arc<Timeouts>,
    deadline: Option<Instant>,
    reading: MessageProgress,
    /// True once one message of the peer was complete.
    has_received_message: bool,
    /// True if the peer loses nothing when the connection ends between two messages.
    is_disposable: bool,
    buffer: Option<Box<Buffer>>,
    ended: bool,
    suspend_requested: bool,
    suspension: SuspendState,
    /// The end reason that applies unless the handler fails or the server cancels the request.
    verdict: Option<EndReason>,
}

/// State of the next suspension.
#[derive(Clone, Copy, Default)]
struct SuspendState {
    /// Start of the idle period, if it began before the suspension.
    since: Option<Instant>,
    /// Time at which the handler is called even if the peer sends nothing.
    wake_at: Option<Instant>,
    /// True if the handler was resumed because of `wake_at`.
    woken: bool,
}

/// The progress of the peer within its current message.
#[derive(Clone, Copy)]
enum MessageProgress {
    /// No byte received since the connection was accepted, at this time.
    Nothing(Instant),
    BetweenMessages,
    /// A message has begun. `before` is the number of bytes received before the message. `waited`
    /// is the time spent waiting for the peer since then, without the handler's own time.
    Message {
        before: u64,
        waited: Duration,
    },
}

impl Connection {
    pub(crate) fn new(
        socket: Socket,
        peer: Address,
        server: ServerHandle,
        id: RequestId,
        timeouts: Arc<Timeouts>,
    ) -> Self {
        let now = Instant::now();
        let deadline = timeouts.request.and_then(|limit| now.checked_add(limit));
        Self {
            socket: Arc::new(socket),
            peer,
            #[cfg(feature = "proxy")]
            proxied: None,
            server,
            id,
            timeouts,
            deadline,
            reading: MessageProgress::Nothing(now),
            has_received_message: false,
            is_disposable: false,
            buffer: None,
            ended: false,
            suspend_requested: false,
            verdict: None,
            suspension: SuspendState::default(),
        }
    }

    /// Returns the number of this request, unique in its server.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Returns the address of the client. A Unix peer is usually [unnamed](Address::is_unnamed).
    /// Behind a trusted proxy (`Builder::proxy_protocol`), the address is the client address from
    /// the PROXY header.
    #[must_use]
    pub fn peer_addr(&self) -> &Address {
        &self.peer
    }

    /// Returns the local address. Behind a trusted proxy (`Builder::proxy_protocol`), the address
    /// is the destination from the PROXY header. Call `getsockname(2)` on [`as_fd`](AsFd::as_fd)
    /// for the socket's own address.
    ///
    /// # Errors
    /// Returns the error of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<Address> {
        #[cfg(feature = "proxy")]
        if let Some(destination) = self.proxy_header().and_then(ProxyHeader::destination) {
            return Ok(destination.clone());
        }
        Ok(Address::from_any(Some(rustix::net::getsockname(
            &self.socket,
        )?)))
    }

    /// Returns the address of the proxy if the connection began with a header of a trusted
    /// [proxy](crate::Builder::proxy_protocol). If the header has no addresses, the proxy itself is
    /// the peer.
    #[cfg(feature = "proxy")]
    #[must_use]
    pub fn proxy_addr(&self) -> Option<&Address> {
        Some(self.proxy_header()?.proxy())
    }

    /// Returns the PROXY protocol header.
    #[cfg(feature = "proxy")]
    #[must_use]
    pub fn proxy_header(&self) -> Option<&ProxyHeader> {
        self.proxied.as_deref()
    }

    /// Stores the PROXY protocol header of a trusted proxy.
    #[cfg(feature = "proxy")]
    pub(crate) fn set_proxied(&mut self, header: ProxyHeader) {
        if let Some(client) = header.client() {
            self.peer = client.clone();
        }
        self.proxied = Some(Box::new(header));
        // The client itself has not sent a byte yet.
        self.reading = MessageProgress::Nothing(Instant::now());
    }

    /// Returns the address of the other end of the socket.
    fn socket_peer(&self) -> &Address {
        #[cfg(feature = "proxy")]
        if let Some(proxy) = self.proxy_addr() {
            return proxy;
        }
        &self.peer
    }

    /// Returns the negotiated TLS parameters if the connection is [encrypted](crate::Builder::tls).
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(&self) -> Option<crate::TlsInfo> {
        self.socket.tls().map(tls::Session::info)
    }

    /// Returns the peer's credentials on a Unix socket, recorded by the kernel at the time of
    /// `connect`. The credentials belong to the process that connected, even if that process is a
    /// proxy.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::Unsupported`] for TCP.
    pub fn peer_credentials(&self) -> io::Result<Credentials> {
        match self.socket_peer() {
            Address::Unix(_) => Credentials::of(&self.socket),
            Address::Inet(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "only Unix sockets carry the peer's credentials",
            )),
        }
    }

    /// Returns a handle of the server, for example to request a shutdown or to read the counters.
    #[must_use]
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// Returns the timeouts of this connection.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        *self.timeouts
    }

    /// Replaces all timeouts.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::InvalidInput`] if a limit is zero.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) -> io::Result<()> {
        if timeouts.zero().is_some() {
            nonzero(Some(Duration::ZERO))?;
        }
        self.timeouts = Arc::new(timeouts);
        Ok(())
    }

    /// Sets the limit on idle time in both directions; see [`Timeouts`].
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::InvalidInput`] if the limit is zero.
    pub fn set_idle_timeout(&mut self, limit: Option<Duration>) -> io::Result<()> {
        Arc::make_mut(&mut self.timeouts).idle = nonzero(limit)?;
        Ok(())
    }

    /// Sets the limit on the wait of each read; see [`Timeouts`].
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::InvalidInput`] if the limit is zero.
    pub fn set_read_timeout(&mut self, limit: Option<Duration>) -> io::Result<()> {
        Arc::make_mut(&mut self.timeouts).read = nonzero(limit)?;
        Ok(())
    }

    /// Sets the limit on the wait of each write; see [`Timeouts`].
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::InvalidInput`] if the limit is zero.
    pub fn set_write_timeout(&mut self, limit: Option<Duration>) -> io::Result<()> {
        Arc::make_mut(&mut self.timeouts).write = nonzero(limit)?;
        Ok(())
    }

    /// Returns the time at which the request ends at the latest.
    #[cfg(any(feature = "http", feature = "proxy", feature = "tls"))]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Sets the time after which every read and write fails, even if bytes still arrive. The server
    /// sets the deadline from [`Timeouts::request`].
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Marks the start of a message whose rest has not arrived yet. From the first such call until
    /// [`end_message`](Self::end_message), the message must arrive at [`Timeouts::receive_rate`].
    /// Only time spent in reads counts.
    ///
    /// [`read_exact`](Read::read_exact), [`read_line`](BufRead::read_line) and
    /// [`read_until`](BufRead::read_until) call this method themselves. `framing::Framed` does the
    /// same when its `with_receive_rate` is set. Call this method in handlers that assemble
    /// messages from single reads.
    ///
    /// ```
    /// use socketserver::Connection;
    /// use std::io::{self, Read};
    ///
    /// fn read_until_blank(conn: &mut Connection, message: &mut Vec<u8>) -> io::Result<()> {
    ///     while !message.ends_with(b"\n\n") {
    ///         let mut some = [0; 512];
    ///         let n = conn.read(&mut some)?;
    ///         if n == 0 {
    ///             return Err(io::ErrorKind::UnexpectedEof.into());
    ///         }
    ///         message.extend_from_slice(&some[..n]);
    ///         conn.begin_message();
    ///     }
    ///     conn.end_message();
    ///     Ok(())
    /// }
    /// ```
    pub fn begin_message(&mut self) {
        if !matches!(self.reading, MessageProgress::Message { .. }) {
            self.reading = MessageProgress::Message {
                before: self.byte_counts().0,
                waited: Duration::ZERO,
            };
        }
    }

    /// Marks the end of a message, complete or abandoned. The peer may then be silent again.
    pub fn end_message(&mut self) {
        if matches!(self.reading, MessageProgress::Message { .. }) {
            self.reading = MessageProgress::BetweenMessages;
            self.has_received_message = true;
        }
    }

    /// Disables Nagle's algorithm if `nodelay` is true (the default): small segments are sent at
    /// once. Enables the algorithm if `nodelay` is false. Has no effect on a Unix socket.
    ///
    /// # Errors
    /// Returns the error of `setsockopt(2)`.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match self.socket_peer() {
            Address::Inet(_) => Ok(sockopt::set_tcp_nodelay(&self.socket, nodelay)?),
            Address::Unix(_) => Ok(()),
        }
    }

    /// Keeps the connection open after the handler returns without an error. The server suspends
    /// the connection and calls [`handle`](crate::RequestHandler::handle) again when more input, or
    /// the end of input, has arrived. A handler repeats this call each time. After the end of
    /// input, this call has no effect.
    ///
    /// A suspended connection costs very little memory: it holds neither a stack (`Green`) nor a
    /// pool thread ([`Pooled`](crate::Pooled)). Under the other models, the connection keeps its
    /// thread or process while it waits.
    ///
    /// If the wait exceeds the idle or read timeout, the request ends with
    /// [`finish`](crate::RequestHandler::finish). When the server begins to drain, the handler
    /// reads the end of input.
    ///
    /// ```
    /// use socketserver::{Connection, PooledTcpServer, handler_fn};
    /// use std::io::{BufRead, Write};
    ///
    /// let server = PooledTcpServer::bind("127.0.0.1:0", handler_fn(|conn: &mut Connection| {
    ///     let mut line = String::new();
    ///     conn.read_line(&mut line)?;
    ///     conn.write_all(line.to_uppercase().as_bytes())?;
    ///     conn.suspend_until_readable();
    ///     Ok(())
    /// }))?;
    /// # Ok::<(), socketserver::BoxError>(())
    /// ```
    pub fn suspend_until_readable(&mut self) {
        self.suspend_requested = true;
    }

    /// Shuts down one or both directions. After `Shutdown::Write` (half-close), the peer reads the
    /// end of input and can still send.
    ///
    /// # Errors
    /// Returns the error of `shutdown(2)`. A peer that has already disconnected is not an error.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if let Shutdown::Write | Shutdown::Both = how {
            self.socket.close_notify(self.write_limits());
        }
        self.socket.shutdown(how)
    }

    /// Returns a second handle that only writes, for use on another thread. After the end of the
    /// request, its writes fail with [`io::ErrorKind::BrokenPipe`]. Drop the handle then, because
    /// it keeps the descriptor open.
    #[must_use]
    pub fn writer(&self) -> WriteHalf {
        WriteHalf {
            socket: self.socket.clone(),
            limits: self.write_limits(),
        }
    }

    /// Sends a range of a file completely. Uses `sendfile(2)`, which copies nothing through this
    /// process. Reads and writes instead if `sendfile(2)` does not support the file. The file
    /// position is neither used nor changed.
    ///
    /// Each wait has the same limits as a [`write`](Write::write). Under the green model, reading a
    /// file that is not in the page cache blocks the worker thread.
    ///
    /// ```
    /// use socketserver::{Connection, ThreadingTcpServer, handler_fn};
    /// use std::fs::File;
    ///
    /// let server = ThreadingTcpServer::bind("127.0.0.1:0", handler_fn(|conn: &mut Connection| {
    ///     let file = File::open("Cargo.toml")?;
    ///     let length = file.metadata()?.len();
    ///     Ok(conn.send_file(&file, 0..length)?)
    /// }))?;
    /// # Ok::<(), socketserver::BoxError>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of a write and of reading the file. Returns
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before the range. Part of the range may
    /// have been sent in either case.
    pub fn send_file(&mut self, file: impl AsFd, mut range: Range<u64>) -> io::Result<()> {
        self.send_of_file(file.as_fd(), &mut range)
    }

    /// Sends a range of a file like [`send_file`](Self::send_file); leaves in `range` the part that
    /// was not sent.
    pub(crate) fn send_of_file(
        &mut self,
        file: BorrowedFd<'_>,
        range: &mut Range<u64>,
    ) -> io::Result<()> {
        while !range.is_empty() {
            let limits = self.write_limits();
            let count = range.end - range.start;
            match self.socket.send_file(file, range.start, count, limits)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => range.start += n as u64,
            }
        }
        Ok(())
    }

    /// Returns the number of bytes received from the peer and the number of bytes sent to it.
    #[must_use]
    pub fn byte_counts(&self) -> (u64, u64) {
        self.socket.byte_counts()
    }

    /// Returns true if the handler has requested a suspension since the last call.
    pub(crate) fn take_suspend_request(&mut self) -> bool {
        std::mem::take(&mut self.suspend_requested) && !self.ended
    }

    /// Sets the end reason that applies unless the handler fails or the server cancels the request;
    /// the first reason wins. Protocols use this method when a handler answers a client that
    /// violates the protocol, and then returns without an error.
    #[cfg(feature = "http")]
    pub(crate) fn ends_as(&mut self, reason: EndReason) {
        self.verdict.get_or_insert(reason);
    }

    /// Returns the end reason that the handler set, if any.
    pub(crate) fn verdict(&self) -> Option<EndReason> {
        self.verdict
    }

    /// Returns true if received bytes are buffered in this process. Frees an empty buffer.
    pub(crate) fn has_buffered(&mut self) -> bool {
        self.buffer.take_if(|buffer| buffer.is_empty());
        #[cfg(feature = "tls")]
        if self.socket.tls().is_some_and(tls::Session::has_plaintext) {
            return true;
        }
        self.buffer.is_some()
    }

    /// Counts the idle time of the next suspension from `since`, and has the handler called at
    /// `wake_at`.
    #[cfg(feature = "http")]
    pub(crate) fn idle_since(&mut self, since: Instant, wake_at: Option<Instant>) {
        self.suspension = SuspendState {
            since: Some(since),
            wake_at,
            woken: false,
        };
    }

    /// Suspends the connection within a message, with the limits that a read would have now. The
    /// handler is called just before one of the limits is reached. Returns the start of the wait.
    #[cfg(feature = "http")]
    pub(crate) fn rest_within_message(&mut self) -> Instant {
        let (now, limits) = (Instant::now(), self.read_limits());
        let longest = [limits.wait, limits.idle].into_iter().flatten().min();
        let end = longest.and_then(|longest| now.checked_add(longest));
        // One millisecond before the suspension itself would end.
        let early = |end: Instant| end.checked_sub(Duration::from_millis(1));
        let wake_at = earliest(limits.deadline, end).and_then(early);
        self.idle_since(now, wake_at);
        self.suspend_until_readable();
        now
    }

    /// Restores the default state for the next suspension.
    #[cfg(feature = "http")]
    pub(crate) fn end_rest(&mut self) {
        self.suspension = SuspendState::default();
    }

    /// Adds a suspension within a message to the time spent waiting for the peer.
    #[cfg(feature = "http")]
    pub(crate) fn has_waited(&mut self, time: Duration) {
        if let MessageProgress::Message { waited, .. } = &mut self.reading {
            *waited += time;
        }
    }

    /// Returns true if a message has begun and is not complete.
    pub(crate) fn is_within_message(&self) -> bool {
        matches!(self.reading, MessageProgress::Message { .. })
    }

    /// Returns true if a read would return bytes, or the end of input, without waiting.
    #[cfg(feature = "http")]
    pub(crate) fn has_something(&mut self) -> bool {
        self.has_buffered() || self.socket.has_input()
    }

    /// Returns true if the handler was called only because its wake-up time was reached.
    #[cfg(feature = "http")]
    pub(crate) fn take_timer_wakeup(&mut self) -> bool {
        std::mem::take(&mut self.suspension.woken)
    }

    /// Returns the end of a suspension that begins now, and the earlier time at which to call the
    /// handler.
    pub(crate) fn suspend_until(&self) -> (Option<Instant>, Option<Instant>) {
        let limits = self.read_limits();
        let longest = [limits.wait, limits.idle].into_iter().flatten().min();
        let since = self.suspension.since.unwrap_or_else(Instant::now);
        let end = longest.and_then(|longest| since.checked_add(longest));
        let end = earliest(limits.deadline, end);
        let wake_at = self.suspension.wake_at;
        (end, wake_at.filter(|at| end.is_none_or(|end| *at < end)))
    }

    /// Handles a suspension that has reached its time limit. Returns true if only the handler's
    /// wake-up time was reached, so that the handler is called.
    pub(crate) fn wake(&mut self) -> bool {
        let (_, wake_at) = self.suspend_until();
        self.suspension.woken = wake_at.is_some();
        self.suspension.wake_at = None;
        self.suspension.woken
    }

    /// Returns true if a suspension that has reached its time limit may continue. It may if only
    /// the idle limit was reached, and bytes were transferred since `moved_before`.
    pub(crate) fn is_written_to(&self, moved_before: u64) -> bool {
        let limits = self.read_limits();
        let (received, sent) = self.byte_counts();
        let has_time = |end| end > Instant::now();
        self.suspension.since.is_none()
            && limits.wait.is_none()
            && limits.deadline.is_none_or(has_time)
            && received + sent != moved_before
    }

    /// Returns the kind of input that a wait for the next bytes expects.
    pub(crate) fn awaited(&self) -> Awaited {
        match self.reading {
            // Without a `first_byte` limit, silent clients are normal: for example, members of a
            // room that only listen.
            MessageProgress::Nothing(_) if self.timeouts.first_byte.is_none() => Awaited::Message,
            MessageProgress::Nothing(_) => Awaited::Opening,
            MessageProgress::Message { .. } if !self.has_received_message => Awaited::Opening,
            MessageProgress::Message { .. } => Awaited::Rest,
            MessageProgress::BetweenMessages if self.is_disposable => Awaited::Request,
            MessageProgress::BetweenMessages => Awaited::Message,
        }
    }

    /// Declares that the peer accepts the end of the connection at any time between two messages,
    /// as HTTP clients do.
    #[cfg(feature = "http")]
    pub(crate) fn set_disposable(&mut self, disposable: bool) {
        self.is_disposable = disposable;
    }

    /// Returns the limits of a wait for the next bytes.
    pub(crate) fn read_limits(&self) -> Limits {
        let (mut wait, mut deadline) = (self.timeouts.read, self.deadline);
        match (self.reading, &*self.timeouts) {
            (MessageProgress::Nothing(accepted), Timeouts { first_byte, .. }) => {
                let end = first_byte.and_then(|limit| accepted.checked_add(limit));
                deadline = earliest(deadline, end);
            }
            (MessageProgress::Message { before, waited }, Timeouts { receive_rate, .. }) => {
                let allowed = receive_rate.map(|rate| rate.allows(self.byte_counts().0 - before));
                let left = allowed.map(|allowed| allowed.saturating_sub(waited));
                wait = [wait, left].into_iter().flatten().min();
            }
            (MessageProgress::BetweenMessages, _) => {}
        }
        Limits {
            wait,
            idle: self.timeouts.idle,
            deadline,
            rate: None,
        }
    }

    /// Returns the limits of a wait for room in the send buffer.
    fn write_limits(&self) -> Limits {
        Limits {
            wait: self.timeouts.write,
            idle: None,
            deadline: self.deadline,
            rate: self.timeouts.send_rate,
        }
    }

    /// Returns the descriptor. Shuts the connection down instead if another handle shares the
    /// socket.
    pub(crate) fn into_fd(self) -> Option<OwnedFd> {
        let socket = Arc::try_unwrap(self.socket).inspect_err(|shared| {
            let _ = shared.shutdown(Shutdown::Both);
        });
        Some(socket.ok()?.into_fd())
    }

    pub(crate) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Returns true if the handler has read the end of the peer's input.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let limits = self.read_limits();
        self.socket.input().begin(self.awaited());
        let received = match &mut self.reading {
            MessageProgress::Nothing(_) | MessageProgress::BetweenMessages => {
                self.socket.recv(buf, limits)
            }
            MessageProgress::Message { waited, .. } => {
                let began = Instant::now();
                let received = self.socket.recv(buf, limits);
                *waited += began.elapsed();
                received
            }
        };
        self.socket.input().end();
        let n = received?;
        self.ended = n == 0;
        if let MessageProgress::Nothing(_) = self.reading {
            self.reading = MessageProgress::BetweenMessages;
        }
        Ok(n)
    }

    /// Calls `read`, which reads one message, and applies the receive rate from its first byte on.
    fn read_message<T>(&mut self, read: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        // An outer call may be reading a longer message at the receive rate; that message
        // continues.
        let is_outermost = !matches!(self.reading, MessageProgress::Message { .. });
        let received = self.byte_counts().0;
        let outcome = read(self);
        if is_outermost {
            self.end_message();
        }
        if received == self.byte_counts().0 {
            // The message was already buffered, so no wait has let other handlers run.
            give_way();
        }
        outcome
    }
}

impl Read for Connection {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.buffer {
            Some(buffer) if !buffer.is_empty() => Ok(buffer.take(buf)),
            _ => self.receive(buf),
        }
    }

    /// Fills the first buffer that is not empty. Scattering one read over several buffers has no
    /// benefit here.
    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match bufs.iter_mut().find(|buf| !buf.is_empty()) {
            Some(buf) => self.read(buf),
            None => Ok(0),
        }
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.read_message(|conn| {
            let mut filled = 0;
            while filled < buf.len() {
                match conn.read(&mut buf[filled..])? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => filled += n,
                }
                conn.begin_message();
            }
            Ok(())
        })
    }
}

impl BufRead for Connection {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let mut buffer = self.buffer.take().unwrap_or_default();
        let filled = if buffer.is_empty() {
            self.receive(&mut buffer.bytes).map(|n| buffer.filled(n))
        } else {
            Ok(())
        };
        let buffer = self.buffer.insert(buffer);
        filled.map(|()| buffer.unread())
    }

    fn consume(&mut self, amount: usize) {
        if let Some(buffer) = &mut self.buffer {
            buffer.start = (buffer.start + amount).min(buffer.end);
        }
    }

    fn read_until(&mut self, byte: u8, buf: &mut Vec<u8>) -> io::Result<usize> {
        self.read_message(|conn| {
            let before = buf.len();
            loop {
                let some = conn.fill_buf()?;
                let found = some.iter().position(|b| *b == byte);
                let n = found.map_or(some.len(), |at| at + 1);
                buf.extend_from_slice(&some[..n]);
                conn.consume(n);
                if found.is_some() || n == 0 {
                    return Ok(buf.len() - before);
                }
                conn.begin_message();
            }
        })
    }

    /// Reads a line like the standard library. A line that is not valid UTF-8 is lost.
    fn read_line(&mut self, buf: &mut String) -> io::Result<usize> {
        // Reuse the caller's allocation if the string is empty.
        let mut line = if buf.is_empty() {
            std::mem::take(buf).into_bytes()
        } else {
            Vec::new()
        };
        let read = self.read_until(b'\n', &mut line);
        match String::from_utf8(line) {
            Ok(line) if buf.is_empty() => *buf = line,
            Ok(line) => buf.push_str(&line),
            Err(_) => {
                let invalid = "the line is not valid UTF-8";
                return read.and(Err(io::Error::new(io::ErrorKind::InvalidData, invalid)));
            }
        }
        read
    }
}

impl Write for Connection {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.send(bufs, self.write_limits())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("peer", &self.peer)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// The writing half of a [`Connection`], for use on another thread than the handler's.
///
/// Each `write` has the limits that the connection had when this handle was created.
#[derive(Clone)]
pub struct WriteHalf {
    socket: Arc<Socket>,
    limits: Limits,
}

impl WriteHalf {
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Performs one write.
    pub(crate) fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.send(bufs, self.limits)
    }

    /// Returns the time limit of a write that begins now.
    #[cfg(feature = "websocket")]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let Limits { wait, deadline, .. } = self.limits;
        let end = wait.and_then(|wait| Instant::now().checked_add(wait));
        earliest(deadline, end)
    }

    /// Returns a handle whose writes also end at `deadline`.
    #[cfg(feature = "websocket")]
    pub(crate) fn until(&self, deadline: Option<Instant>) -> Self {
        let mut writer = self.clone();
        writer.limits.deadline = earliest(writer.limits.deadline, deadline);
        writer
    }
}

impl Write for WriteHalf {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteHalf")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Bytes that were received and not yet read.
struct Buffer {
    bytes: [u8; 8192],
    start: usize,
    end: usize,
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            bytes: [0; 8192],
            start: 0,
            end: 0,
        }
    }
}

impl Buffer {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn filled(&mut self, n: usize) {
        (self.start, self.end) = (0, n);
    }

    fn take(&mut self, buf: &mut [u8]) -> usize {
        let n = buf.len().min(self.end - self.start);
        buf[..n].copy_from_slice(&self.bytes[self.start..self.start + n]);
        self.start += n;
        n
    }
}
