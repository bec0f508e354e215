//! A room: what is sent to it reaches all who are in it.

mod outbox;
mod pace;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use outbox::MessageSink;
use outbox::{Enqueued, Outbox};
use pace::Pace;

use crate::notify::{Notify, spawn_beside};
use crate::{Connection, Rate, RequestId};

/// Connections that all receive what is sent to the room, in one order for everybody.
///
/// Nobody waits for anybody else. Each member has an outbox that is written to its connection beside
/// its handler, by a thread or, under `Green`, a coroutine. A member that does not read lets its
/// outbox grow to the room's limit, and is then cut: its handler's reads fail, the request ends as
/// [`SlowConsumer`](crate::EndReason::FellBehind), and nobody else notices.
///
/// ```
/// use socketserver::{Connection, Room, ThreadingTcpServer, handler_fn};
/// use std::io::Read;
///
/// let room = Room::new();
/// let server = ThreadingTcpServer::bind("127.0.0.1:0", handler_fn(move |conn: &mut Connection| {
///     let member = room.join(conn)?;
///     let mut chunk = [0; 1024];
///     loop {
///         match conn.read(&mut chunk)? {
///             0 => return Ok(member.leave()?),
///             n => member.send(&chunk[..n])?,
///         }
///     }
/// }))?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
///
/// A message is bytes as they are written: where clients speak in lines, with the end of the line. A
/// handler leaves when it is done, in `handle` or in `finish`, and with an error it may just be
/// dropped. A drain does not end a room, whose members may be silent: [`close`](Self::close) it when
/// [`Event::DrainStarted`](crate::Event::DrainStarted) comes. Limits other than the default ones:
/// `Room::with_limits(RoomLimits::default().messages(100))`.
///
/// Under [`Forking`](crate::Forking) each child has a copy of the room with nobody else in it.
#[derive(Clone)]
pub struct Room(Arc<Shared>);

struct Shared {
    limits: RoomLimits,
    members: Mutex<Members>,
    messages: AtomicU64,
    slow_consumer: AtomicU64,
}

#[derive(Default)]
struct Members {
    outboxes: BTreeMap<u64, Arc<Outbox>>,
    next: u64,
    closed: bool,
}

/// How far behind a member may fall before it is cut, and how fast it may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomLimits {
    /// Messages that wait to be written to one member: 1024 by default.
    pub messages: usize,
    /// Bytes that wait to be written to one member: 1 MiB by default. A single message may be
    /// longer, if nothing else waits.
    pub bytes: usize,
    /// Bytes per second that one member may send with [`Member::send`]: any number by default.
    pub byte_rate: Option<Rate>,
    /// Messages per second that one member may send with [`Member::send`]: any number by default.
    pub message_rate: Option<Rate>,
}

impl Default for RoomLimits {
    fn default() -> Self {
        Self {
            messages: 1024,
            bytes: 1 << 20,
            byte_rate: None,
            message_rate: None,
        }
    }
}

impl RoomLimits {
    /// Sets how many messages may wait for one member.
    #[must_use]
    pub const fn messages(mut self, messages: usize) -> Self {
        self.messages = messages;
        self
    }

    /// Sets how many bytes may wait for one member.
    #[must_use]
    pub const fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Sets how many bytes one member may send per second.
    ///
    /// [`Member::send`] delays a member that sends faster, so that its connection is not read
    /// meanwhile. Members that read at this rate are then not cut because of one member that sends
    /// as fast as it can. The burst should be well below [`bytes`](Self::bytes). A message that is
    /// longer than the burst waits for a full bucket, and delays the next one accordingly.
    ///
    /// ```
    /// use socketserver::{Rate, RoomLimits};
    ///
    /// let limits = RoomLimits::default()
    ///     .byte_rate(Rate::per_second(512 << 10).burst(256 << 10))
    ///     .message_rate(Rate::per_second(1000).burst(500));
    /// ```
    #[must_use]
    pub fn byte_rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.byte_rate = rate.into();
        self
    }

    /// Sets how many messages one member may send per second, as [`byte_rate`](Self::byte_rate) does
    /// for bytes. The burst should be well below [`messages`](Self::messages).
    #[must_use]
    pub fn message_rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.message_rate = rate.into();
        self
    }
}

/// Figures about a room; see [`Room::counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomCounters {
    /// Who is in it now.
    pub members: usize,
    /// Messages sent to it so far.
    pub messages: u64,
    /// Members that did not read and were cut so far.
    pub slow_consumer: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

impl Room {
    /// An empty room with the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(RoomLimits::default())
    }

    /// An empty room.
    #[must_use]
    pub fn with_limits(limits: RoomLimits) -> Self {
        Self(Arc::new(Shared {
            limits,
            members: Mutex::default(),
            messages: AtomicU64::new(0),
            slow_consumer: AtomicU64::new(0),
        }))
    }

    /// Takes a connection into the room. From now on it receives what is sent to it, until the
    /// [`Member`] leaves or is dropped. The write timeout and the deadline that the connection has
    /// now hold for that.
    ///
    /// # Errors
    /// * the system has no thread for the member's outbox, or the engine no stack;
    /// * [`io::ErrorKind::NotConnected`], if the room [was closed](Self::close).
    pub fn join(&self, conn: &Connection) -> io::Result<Member> {
        self.join_by(conn, conn.writer())
    }

    /// The same for the client of a WebSocket. Each message is one there as well: text if it is
    /// UTF-8, bytes if it is not. It goes in order with what else the WebSocket sends.
    ///
    /// ```
    /// use socketserver::websocket::{CloseReason, Handler, Message, WebSocket};
    /// use socketserver::{Member, Result, Room};
    ///
    /// struct Chat(Room, Option<Member>);
    ///
    /// impl Handler for Chat {
    ///     fn opened(&mut self, socket: &mut WebSocket<'_>) -> Result<()> {
    ///         self.1 = Some(self.0.join_websocket(socket)?);
    ///         Ok(())
    ///     }
    ///
    ///     fn message(&mut self, _: &mut WebSocket<'_>, message: Message) -> Result<()> {
    ///         match &self.1 {
    ///             Some(member) => Ok(member.send(message.as_bytes())?),
    ///             None => Ok(()),
    ///         }
    ///     }
    ///
    ///     fn closed(&mut self, _: &mut WebSocket<'_>, _: &CloseReason) -> Result<()> {
    ///         match self.1.take() {
    ///             Some(member) => Ok(member.leave()?),
    ///             None => Ok(()),
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// As for [`join`](Self::join).
    #[cfg(feature = "websocket")]
    pub fn join_websocket(&self, socket: &crate::websocket::WebSocket<'_>) -> io::Result<Member> {
        self.join_by(socket.connection(), socket.sender())
    }

    fn join_by(&self, conn: &Connection, way: impl MessageSink) -> io::Result<Member> {
        let outbox = Arc::new(Outbox::new(conn.id(), way, self.0.limits));
        let number = {
            let mut members = self.0.members();
            if members.closed {
                return Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "the room is closed",
                ));
            }
            let number = members.next;
            members.next += 1;
            members.outboxes.insert(number, outbox.clone());
            number
        };
        let member = Member {
            room: self.clone(),
            number,
            patience: conn.timeouts().write,
            outbox: outbox.clone(),
            room_available: Arc::default(),
            pace: Pace::new(self.0.limits),
        };
        let room = self.clone();
        // If this fails, dropping the member takes it out again.
        spawn_beside("outbox", move || {
            let written = outbox.write_all();
            if written.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
                room.slow_consumer(number, &outbox);
            }
        })?;
        Ok(member)
    }

    /// Sends a message to everybody who is in the room now; never waits. Returns how many that are.
    ///
    /// Whoever sends faster than the members can read makes them fall behind: a handler that passes
    /// on what its client sends had better use [`Member::send`].
    pub fn send(&self, message: impl Into<Arc<[u8]>>) -> usize {
        self.put(&message.into()).reached
    }

    fn put(&self, message: &Arc<[u8]>) -> Sent {
        self.0.messages.fetch_add(1, Ordering::Relaxed);
        let mut behind = Vec::new();
        let mut sent = Sent::default();
        {
            // Held over all outboxes: that is what makes the order the same in each.
            let members = self.0.members();
            for (&number, outbox) in &members.outboxes {
                match outbox.put(message) {
                    Enqueued::Ok => {}
                    Enqueued::HalfFull => sent.filling.push(outbox.clone()),
                    Enqueued::Overflow => behind.push((number, outbox.clone())),
                }
            }
            sent.reached = members.outboxes.len() - behind.len();
        }
        for (number, outbox) in behind {
            self.slow_consumer(number, &outbox);
        }
        sent
    }

    /// Closes the room: nobody joins any more, and members find the end of their input, as if their
    /// clients had left. What was sent before is still written to them.
    pub fn close(&self) {
        let all: Vec<_> = {
            let mut members = self.0.members();
            members.closed = true;
            members.outboxes.values().cloned().collect()
        };
        for outbox in all {
            outbox.end_input();
        }
    }

    /// Figures about it.
    #[must_use]
    pub fn counters(&self) -> RoomCounters {
        RoomCounters {
            members: self.0.members().outboxes.len(),
            messages: self.0.messages.load(Ordering::Relaxed),
            slow_consumer: self.0.slow_consumer.load(Ordering::Relaxed),
        }
    }

    /// Takes a member out that cannot keep up, and cuts its connection.
    fn slow_consumer(&self, number: u64, outbox: &Outbox) {
        self.0.members().outboxes.remove(&number);
        if outbox.is_first_time() {
            self.0.slow_consumer.fetch_add(1, Ordering::Relaxed);
            let (id, waiting) = (outbox.id(), outbox.waiting());
            tracing::debug!(%id, waiting, "a member fell behind and is cut");
        }
        outbox.cut();
    }
}

/// What came of a message.
#[derive(Default)]
struct Sent {
    reached: usize,
    /// More than half full by now.
    filling: Vec<Arc<Outbox>>,
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Members> {
        // A std lock on purpose: it is held for moments, nothing waits under it, and unlike one
        // that parks it can be taken by a destructor that runs because of a panic.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("limits", &self.0.limits)
            .field("counters", &self.counters())
            .finish()
    }
}

/// A connection's place in a [`Room`]. Dropping it gives the place up at once.
pub struct Member {
    room: Room,
    number: u64,
    /// How long one write may wait.
    patience: Option<Duration>,
    outbox: Arc<Outbox>,
    room_available: Arc<Notify>,
    pace: Pace,
}

/// How long a message may hold up its sender when outboxes fill up faster than they are written.
const SENDER_BACKPRESSURE: Duration = Duration::from_millis(10);

impl Member {
    /// The connection's request.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.outbox.id()
    }

    /// Sends a message to everybody in the room, this member included.
    ///
    /// It waits while the member's own outbox is more than half full, so that a client which sends
    /// without end is read no faster than it reads. One that reads nothing for as long as the write
    /// timeout is cut. It waits while the member sends faster than
    /// [`RoomLimits::byte_rate`] or [`RoomLimits::message_rate`] allows. Under [`Pooled`](crate::Pooled)
    /// both waits hold a thread of the pool. And it waits for a few milliseconds when messages come in faster than this
    /// machine writes them, but never for another client.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionAborted`] once the member has been cut, and
    /// [`io::ErrorKind::BrokenPipe`] once its client is gone.
    pub fn send(&self, message: impl Into<Arc<[u8]>>) -> io::Result<()> {
        while self.outbox.is_half_full()? {
            if !self.outbox.wait_for_progress(self.until()) {
                self.room.slow_consumer(self.number, &self.outbox);
            }
        }
        let message = message.into();
        while let Err(at) = self.pace.charge(message.len(), Instant::now()) {
            self.outbox.rest_until(at)?;
        }
        let sent = self.room.put(&message);
        if !sent.filling.is_empty() {
            let until = Instant::now() + SENDER_BACKPRESSURE;
            for outbox in &sent.filling {
                outbox.wait_for_room(&self.room_available, until);
            }
        }
        Ok(())
    }

    /// Leaves the room, and waits until everything that was sent to the member before has been
    /// written to its connection; for no longer than one write may take.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn leave(self) -> io::Result<()> {
        self.go();
        let until = self.until();
        while !self.outbox.is_written()? {
            if !self.outbox.wait_for_progress(until) {
                self.room.slow_consumer(self.number, &self.outbox);
            }
        }
        Ok(())
    }

    fn until(&self) -> Option<Instant> {
        self.patience
            .and_then(|patience| Instant::now().checked_add(patience))
    }

    fn go(&self) {
        self.room.0.members().outboxes.remove(&self.number);
        self.outbox.close();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.go();
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("id", &self.id())
            .field("waiting", &self.outbox.waiting())
            .finish_non_exhaustive()
    }
}
