//! What a stream handler is given: one connected peer, over TCP or a Unix stream socket.

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

/// A connection to one peer, read and written in plain blocking style.
///
/// * [`Read`] takes what has arrived, straight into the caller's memory. [`BufRead`] (`read_line`,
///   `lines`, ...) allocates its 8 KiB buffer with the first call that needs one; what it holds is
///   what `read` returns next, so the two can be mixed. `read_line` and `read_until` have no limit
///   of their own: put [`Read::take`] before them where the peer is not trusted.
/// * [`Write`] is unbuffered: what `write` accepted is in the kernel's hands, and `flush` has
///   nothing to do. Wrap it in [`std::io::BufWriter`] for many small pieces.
/// * Every wait is bounded by the server's [`Timeouts`], or those set here, and fails with
///   [`io::ErrorKind::TimedOut`]. Interruption by a signal never surfaces.
/// * When the request ends, the server half-closes the connection and closes it, so that nothing
///   that was written is lost. While it is served, the server can cut it: reads and writes then
///   fail with [`io::ErrorKind::ConnectionAborted`].
pub struct Connection {
    socket: Arc<Socket>,
    peer: Address,
    /// What a trusted proxy has said.
    #[cfg(feature = "proxy")]
    proxied: Option<Box<ProxyHeader>>,
    server: ServerHandle,
    id: RequestId,
    /// Shared by all until a handler changes its own.
    timeouts: Arc<Timeouts>,
    deadline: Option<Instant>,
    reading: MessageProgress,
    /// A message of the peer was complete.
    has_spoken: bool,
    /// Between two messages the peer loses nothing by an end of the connection.
    is_disposable: bool,
    buffer: Option<Box<Buffer>>,
    ended: bool,
    suspend_requested: bool,
    rest: SuspendState,
    /// How it ends, if neither the handler fails nor the server cuts it.
    verdict: Option<EndReason>,
}

/// What is particular about the next pause.
#[derive(Clone, Copy, Default)]
struct SuspendState {
    /// The silence began then, and not with the pause.
    since: Option<Instant>,
    /// The handler is to be called then, whatever the peer does.
    wake_at: Option<Instant>,
    /// That was the case.
    woken: bool,
}

/// How far the peer has come with what it says.
#[derive(Clone, Copy)]
enum MessageProgress {
    /// It has said nothing since it was accepted.
    Nothing(Instant),
    BetweenMessages,
    /// A message has begun when so many bytes had been received in total, and the peer was waited
    /// for as long since. The time that the handler takes is its own.
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
            has_spoken: false,
            is_disposable: false,
            buffer: None,
            ended: false,
            suspend_requested: false,
            verdict: None,
            rest: SuspendState::default(),
        }
    }

    /// The number of this request, unique in its server.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Who connected. A Unix peer is usually [unnamed](Address::is_unnamed). Behind a trusted
    /// proxy (`Builder::proxy_protocol`) it is the client, as the proxy says.
    #[must_use]
    pub fn peer_addr(&self) -> &Address {
        &self.peer
    }

    /// The address on this side. Behind a trusted proxy (`Builder::proxy_protocol`) it is the one
    /// that the client connected to, as the proxy says; the socket's own is what `getsockname(2)`
    /// reports of [`as_fd`](AsFd::as_fd).
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<Address> {
        #[cfg(feature = "proxy")]
        if let Some(destination) = self.proxy_header().and_then(ProxyHeader::destination) {
            return Ok(destination.clone());
        }
        Ok(Address::from_any(Some(rustix::net::getsockname(
            &self.socket,
        )?)))
    }

    /// The proxy that the client came by, if a header of a trusted
    /// [proxy](crate::Builder::proxy_protocol) began the connection; it is the peer itself if the
    /// header had no addresses.
    #[cfg(feature = "proxy")]
    #[must_use]
    pub fn proxy_addr(&self) -> Option<&Address> {
        Some(self.proxy_header()?.proxy())
    }

    /// All that the proxy has said.
    #[cfg(feature = "proxy")]
    #[must_use]
    pub fn proxy_header(&self) -> Option<&ProxyHeader> {
        self.proxied.as_deref()
    }

    /// Takes over what a trusted proxy has said.
    #[cfg(feature = "proxy")]
    pub(crate) fn set_proxied(&mut self, header: ProxyHeader) {
        if let Some(client) = header.client() {
            self.peer = client.clone();
        }
        self.proxied = Some(Box::new(header));
        // The client itself has said nothing yet.
        self.reading = MessageProgress::Nothing(Instant::now());
    }

    /// Who is at the other end of the socket.
    fn socket_peer(&self) -> &Address {
        #[cfg(feature = "proxy")]
        if let Some(proxy) = self.proxy_addr() {
            return proxy;
        }
        &self.peer
    }

    /// What was agreed upon with the peer, if the connection is [encrypted](crate::Builder::tls).
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(&self) -> Option<crate::TlsInfo> {
        self.socket.tls().map(tls::Session::info)
    }

    /// Who the peer is, on a Unix socket: the kernel's word at the time of `connect`. It is about
    /// the process that connected, be it a proxy.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] for TCP.
    pub fn peer_credentials(&self) -> io::Result<Credentials> {
        match self.socket_peer() {
            Address::Unix(_) => Credentials::of(&self.socket),
            Address::Inet(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "only Unix sockets carry the peer's credentials",
            )),
        }
    }

    /// The server's controller: a handler may ask for a shutdown, or look at the counters.
    #[must_use]
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// The limits in force.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        *self.timeouts
    }

    /// Replaces them all.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a limit of zero.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) -> io::Result<()> {
        if timeouts.zero().is_some() {
            nonzero(Some(Duration::ZERO))?;
        }
        self.timeouts = Arc::new(timeouts);
        Ok(())
    }

    /// Bounds the silence in both directions; see [`Timeouts`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a limit of zero.
    pub fn set_idle_timeout(&mut self, limit: Option<Duration>) -> io::Result<()> {
        Arc::make_mut(&mut self.timeouts).idle = nonzero(limit)?;
        Ok(())
    }

    /// Bounds the wait of each read; see [`Timeouts`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a limit of zero.
    pub fn set_read_timeout(&mut self, limit: Option<Duration>) -> io::Result<()> {
        Arc::make_mut(&mut self.timeouts).read = nonzero(limit)?;
        Ok(())
    }

    /// Bounds the wait of each write; see [`Timeouts`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a limit of zero.
    pub fn set_write_timeout(&mut self, limit: Option<Duration>) -> io::Result<()> {
        Arc::make_mut(&mut self.timeouts).write = nonzero(limit)?;
        Ok(())
    }

    /// When the whole request has to be over.
    #[cfg(any(feature = "http", feature = "proxy", feature = "tls"))]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Sets the point in time after which every read and write fails, however many bytes trickle
    /// in until then. The server sets it from [`Timeouts::request`].
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Says that the beginning of a message has been read, and the rest is waited for: until
    /// [`end_message`](Self::end_message) it must arrive at [`Timeouts::receive_rate`], counted from
    /// the first such call. Only the time that is spent in reading counts.
    ///
    /// [`read_exact`](Read::read_exact), [`read_line`](BufRead::read_line) and
    /// [`read_until`](BufRead::read_until) say it by themselves, and so does `framing::Framed` once
    /// it is `with_receive_rate`. It is for handlers that put messages together out of single reads.
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

    /// The message is complete, or was given up: the peer may be silent again.
    pub fn end_message(&mut self) {
        if matches!(self.reading, MessageProgress::Message { .. }) {
            self.reading = MessageProgress::BetweenMessages;
            self.has_spoken = true;
        }
    }

    /// Sends small segments at once (the default), or lets the kernel gather them (Nagle's
    /// algorithm). Without effect on a Unix socket.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match self.socket_peer() {
            Address::Inet(_) => Ok(sockopt::set_tcp_nodelay(&self.socket, nodelay)?),
            Address::Unix(_) => Ok(()),
        }
    }

    /// Keeps the connection after the handler has returned without an error: it is called again, by
    /// [`handle`](crate::RequestHandler::handle), when there is more to read, be it the end of
    /// input. To be asked for anew in each call; after the end of input it has no effect.
    ///
    /// A handler that returns after each message lets a silent connection cost next to nothing: it
    /// holds neither a stack (`Green`) nor a thread of the pool
    /// ([`Pooled`](crate::Pooled)) while it waits. Under the other models it simply waits.
    ///
    /// The request ends, by [`finish`](crate::RequestHandler::finish), when it waits for longer
    /// than the idle or read timeout allows. When the server begins to drain, the handler finds the
    /// end of input.
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

    /// Half-closes: after `Shutdown::Write` the peer reads an end of input and can still send.
    ///
    /// # Errors
    /// Those of `shutdown(2)`; a peer that is gone already is none.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if let Shutdown::Write | Shutdown::Both = how {
            self.socket.close_notify(self.write_limits());
        }
        self.socket.shutdown(how)
    }

    /// A second handle that only writes, for another thread. After the end of the request its
    /// writes fail with [`io::ErrorKind::BrokenPipe`]; drop it then, as it keeps the descriptor
    /// open.
    #[must_use]
    pub fn writer(&self) -> WriteHalf {
        WriteHalf {
            socket: self.socket.clone(),
            limits: self.write_limits(),
        }
    }

    /// Sends a part of a file, all of it: with `sendfile(2)`, which copies nothing through this
    /// process, or by reading and writing where the file is none that it takes. The position in the
    /// file is neither used nor changed.
    ///
    /// Each wait is bounded like that of a [`write`](Write::write). Under the green model a file that
    /// is not in memory yet is read on the thread that others need as well.
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
    /// Those of a write, and of reading the file; [`io::ErrorKind::UnexpectedEof`] if the file ends
    /// before the range does. Some of it may have been sent then.
    pub fn send_file(&mut self, file: impl AsFd, mut range: Range<u64>) -> io::Result<()> {
        self.send_of_file(file.as_fd(), &mut range)
    }

    /// The same; leaves in `range` what was not sent.
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

    /// Bytes received from the peer and sent to it so far.
    #[must_use]
    pub fn byte_counts(&self) -> (u64, u64) {
        self.socket.byte_counts()
    }

    /// Whether the handler has asked to keep the connection, since this was last looked at.
    pub(crate) fn take_suspend_request(&mut self) -> bool {
        std::mem::take(&mut self.suspend_requested) && !self.ended
    }

    /// Sets how the request ends, if neither the handler fails nor the server cuts it; the first such
    /// reason counts. It is for protocols whose handler answers a client that breaks them, and returns
    /// without an error.
    #[cfg(feature = "http")]
    pub(crate) fn ends_as(&mut self, reason: EndReason) {
        self.verdict.get_or_insert(reason);
    }

    /// That reason, if there is one.
    pub(crate) fn verdict(&self) -> Option<EndReason> {
        self.verdict
    }

    /// Whether there is something to read that has left the kernel already. If not, the memory for
    /// it is given back.
    pub(crate) fn has_buffered(&mut self) -> bool {
        self.buffer.take_if(|buffer| buffer.is_empty());
        #[cfg(feature = "tls")]
        if self.socket.tls().is_some_and(tls::Session::has_plaintext) {
            return true;
        }
        self.buffer.is_some()
    }

    /// Lets the silence of the next pause count from a time on, and has the handler called within it.
    #[cfg(feature = "http")]
    pub(crate) fn idle_since(&mut self, since: Instant, wake_at: Option<Instant>) {
        self.rest = SuspendState {
            since: Some(since),
            wake_at,
            woken: false,
        };
    }

    /// Keeps the connection within a message, with the limits that a read would have now. The handler is
    /// called when one of them is reached. Returns when it begins to wait.
    #[cfg(feature = "http")]
    pub(crate) fn rest_within_message(&mut self) -> Instant {
        let (now, limits) = (Instant::now(), self.read_limits());
        let patience = [limits.wait, limits.idle].into_iter().flatten().min();
        let end = patience.and_then(|patience| now.checked_add(patience));
        // Before the pause itself would end.
        let early = |end: Instant| end.checked_sub(Duration::from_millis(1));
        let wake_at = earliest(limits.deadline, end).and_then(early);
        self.idle_since(now, wake_at);
        self.suspend_until_readable();
        now
    }

    /// Lets the next pause be like any other again.
    #[cfg(feature = "http")]
    pub(crate) fn end_rest(&mut self) {
        self.rest = SuspendState::default();
    }

    /// Counts a pause within a message into the time that its peer was waited for.
    #[cfg(feature = "http")]
    pub(crate) fn has_waited(&mut self, time: Duration) {
        if let MessageProgress::Message { waited, .. } = &mut self.reading {
            *waited += time;
        }
    }

    /// Whether a message has begun, and its rest is to come.
    pub(crate) fn is_within_message(&self) -> bool {
        matches!(self.reading, MessageProgress::Message { .. })
    }

    /// Whether a read finds something, or has found the end, without waiting.
    #[cfg(feature = "http")]
    pub(crate) fn has_something(&mut self) -> bool {
        self.has_buffered() || self.socket.has_input()
    }

    /// Whether the handler is called for no other reason than that.
    #[cfg(feature = "http")]
    pub(crate) fn take_timer_wakeup(&mut self) -> bool {
        std::mem::take(&mut self.rest.woken)
    }

    /// When a pause that begins now is over, and when the handler is to be called before.
    pub(crate) fn suspend_until(&self) -> (Option<Instant>, Option<Instant>) {
        let limits = self.read_limits();
        let silence = [limits.wait, limits.idle].into_iter().flatten().min();
        let since = self.rest.since.unwrap_or_else(Instant::now);
        let end = silence.and_then(|silence| since.checked_add(silence));
        let end = earliest(limits.deadline, end);
        let wake_at = self.rest.wake_at;
        (end, wake_at.filter(|at| end.is_none_or(|end| *at < end)))
    }

    /// A pause has lasted for as long as it might: whether that was only for the handler to be called.
    pub(crate) fn wake(&mut self) -> bool {
        let (_, wake_at) = self.suspend_until();
        self.rest.woken = wake_at.is_some();
        self.rest.wake_at = None;
        self.rest.woken
    }

    /// A pause has lasted for as long as it might: whether it may go on, as all that has ended it is the
    /// time for which a connection may be idle, and it was written to meanwhile.
    pub(crate) fn is_written_to(&self, moved_before: u64) -> bool {
        let limits = self.read_limits();
        let (received, sent) = self.byte_counts();
        let has_time = |end| end > Instant::now();
        self.rest.since.is_none()
            && limits.wait.is_none()
            && limits.deadline.is_none_or(has_time)
            && received + sent != moved_before
    }

    /// What a wait for the next bytes is for.
    pub(crate) fn awaited(&self) -> Awaited {
        match self.reading {
            // Where clients may be silent for any time, they are members that only listen.
            MessageProgress::Nothing(_) if self.timeouts.first_byte.is_none() => Awaited::Message,
            MessageProgress::Nothing(_) => Awaited::Opening,
            MessageProgress::Message { .. } if !self.has_spoken => Awaited::Opening,
            MessageProgress::Message { .. } => Awaited::Rest,
            MessageProgress::BetweenMessages if self.is_disposable => Awaited::Request,
            MessageProgress::BetweenMessages => Awaited::Message,
        }
    }

    /// Says that the peer expects an end of the connection at any time between two messages, as
    /// clients of HTTP do.
    #[cfg(feature = "http")]
    pub(crate) fn set_disposable(&mut self, disposable: bool) {
        self.is_disposable = disposable;
    }

    /// What a wait for the next bytes is bounded by.
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

    /// What a wait for room is bounded by.
    fn write_limits(&self) -> Limits {
        Limits {
            wait: self.timeouts.write,
            idle: None,
            deadline: self.deadline,
            rate: self.timeouts.send_rate,
        }
    }

    /// The descriptor. If somebody else has it as well, the connection is shut down instead.
    pub(crate) fn into_fd(self) -> Option<OwnedFd> {
        let socket = Arc::try_unwrap(self.socket).inspect_err(|shared| {
            let _ = shared.shutdown(Shutdown::Both);
        });
        Some(socket.ok()?.into_fd())
    }

    pub(crate) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Whether the handler has seen the end of the peer's input.
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

    /// Runs what reads one message, and has the peer paced from the first byte on.
    fn reading_message<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        // A handler that paces a longer message goes on doing so.
        let is_outermost = !matches!(self.reading, MessageProgress::Message { .. });
        let received = self.byte_counts().0;
        let outcome = read(self);
        if is_outermost {
            self.end_message();
        }
        if received == self.byte_counts().0 {
            // It was here already, so that no wait has let others go first.
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

    /// Fills the first buffer that has room; scattering one read over several gains nothing here.
    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match bufs.iter_mut().find(|buf| !buf.is_empty()) {
            Some(buf) => self.read(buf),
            None => Ok(0),
        }
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.reading_message(|conn| {
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
        self.reading_message(|conn| {
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

    /// Like the standard library's: if what was read is not valid UTF-8, it is lost.
    fn read_line(&mut self, buf: &mut String) -> io::Result<usize> {
        // Into the caller's memory where nothing else is in it.
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

/// The writing half of a [`Connection`], for another thread than the handler's.
///
/// Each `write` is bounded like the connection's own at the time it was made.
#[derive(Clone)]
pub struct WriteHalf {
    socket: Arc<Socket>,
    limits: Limits,
}

impl WriteHalf {
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// One write.
    pub(crate) fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.send(bufs, self.limits)
    }

    /// When a write that begins now has to be over, or to get on.
    #[cfg(feature = "websocket")]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let Limits { wait, deadline, .. } = self.limits;
        let end = wait.and_then(|wait| Instant::now().checked_add(wait));
        earliest(deadline, end)
    }

    /// The same for writes that are over by then.
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
        f.debug_struct("Writer")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// What has been received and not yet been read.
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
