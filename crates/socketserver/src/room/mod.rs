//! Rooms: a message to a room reaches all of its members.

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

/// A group of connections that all receive each message sent to the group, in the same order.
///
/// A slow member never delays the others. Each member has an outbox for its messages. A thread, or
/// a coroutine under `Green`, writes them to the connection, independently of the handler. Messages
/// are queued up to [`RoomLimits`]. When the outbox is full, the member is disconnected: its
/// handler's reads fail, and the request ends as [`SlowConsumer`](crate::EndReason::SlowConsumer).
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
/// A message is a sequence of bytes that is written unchanged. If clients use lines, include the
/// line terminator. A handler leaves the room at its end, in `handle` or in `finish`. A handler
/// that returns an error can drop the [`Member`].
///
/// A drain does not end a room, because members may be silent. Call [`close`](Self::close) on
/// [`Event::DrainStarted`](crate::Event::DrainStarted). Set other limits with
/// `Room::with_limits(RoomLimits::default().messages(100))`.
///
/// Under [`Forking`](crate::Forking), each child has its own copy of the room with itself as the
/// only member.
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

/// The limits of a room: outbox sizes, and the rate at which a member may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomLimits {
    /// The maximum number of messages that wait to be written to one member. Defaults to 1024.
    pub messages: usize,
    /// The maximum number of bytes that wait to be written to one member. Defaults to 1 MiB. A
    /// longer message is accepted if the outbox is empty.
    pub bytes: usize,
    /// The byte rate at which one member may send with [`Member::send`]. Defaults to no limit.
    pub byte_rate: Option<Rate>,
    /// The message rate at which one member may send with [`Member::send`]. Defaults to no limit.
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
    /// Sets the maximum number of messages that wait for one member. Defaults to 1024.
    #[must_use]
    pub const fn messages(mut self, messages: usize) -> Self {
        self.messages = messages;
        self
    }

    /// Sets the maximum number of bytes that wait for one member. Defaults to 1 MiB.
    #[must_use]
    pub const fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Sets the byte rate at which one member may send. Defaults to no limit.
    ///
    /// [`Member::send`] delays a member that sends faster, and its connection is not read during
    /// the delay. One fast sender therefore does not disconnect members that read at this rate. Set
    /// the burst well below [`bytes`](Self::bytes). A message longer than the burst waits for a
    /// full bucket, and the next message waits accordingly longer.
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

    /// Sets the message rate at which one member may send, like [`byte_rate`](Self::byte_rate).
    /// Defaults to no limit. Set the burst well below [`messages`](Self::messages).
    #[must_use]
    pub fn message_rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.message_rate = rate.into();
        self
    }
}

/// Statistics of a room; see [`Room::counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomCounters {
    /// Number of current members.
    pub members: usize,
    /// Number of messages sent to the room.
    pub messages: u64,
    /// Number of members that were disconnected because they did not read fast enough.
    pub slow_consumer: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

impl Room {
    /// Creates an empty room with the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(RoomLimits::default())
    }

    /// Creates an empty room with the given limits.
    #[must_use]
    pub fn with_limits(limits: RoomLimits) -> Self {
        Self(Arc::new(Shared {
            limits,
            members: Mutex::default(),
            messages: AtomicU64::new(0),
            slow_consumer: AtomicU64::new(0),
        }))
    }

    /// Adds a connection to the room. The connection receives every message sent to the room until
    /// the [`Member`] leaves or is dropped. These writes use the write timeout and the deadline
    /// that the connection has now.
    ///
    /// # Errors
    /// Returns an error if the system cannot create a thread for the member's outbox, or the green
    /// runtime has no free stack. Returns [`io::ErrorKind::NotConnected`] if the room [was
    /// closed](Self::close).
    pub fn join(&self, conn: &Connection) -> io::Result<Member> {
        self.join_by(conn, conn.writer())
    }

    /// Adds the client of a WebSocket to the room. Each message becomes one WebSocket message: text
    /// if it is valid UTF-8, binary otherwise. Room messages and other messages of the WebSocket
    /// are sent in order.
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
    /// Returns the same errors as [`join`](Self::join).
    #[cfg(feature = "websocket")]
    pub fn join_websocket(&self, socket: &crate::websocket::WebSocket<'_>) -> io::Result<Member> {
        self.join_by(socket.connection(), socket.sender())
    }

    fn join_by(&self, conn: &Connection, sink: impl MessageSink) -> io::Result<Member> {
        let outbox = Arc::new(Outbox::new(conn.id(), sink, self.0.limits));
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
            write_timeout: conn.timeouts().write,
            outbox: outbox.clone(),
            room_available: Arc::default(),
            pace: Pace::new(self.0.limits),
        };
        let room = self.clone();
        // If this fails, dropping `member` removes it from the room.
        spawn_beside("outbox", move || {
            let written = outbox.write_all();
            if written.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
                room.slow_consumer(number, &outbox);
            }
        })?;
        Ok(member)
    }

    /// Sends a message to all current members and returns their number. Never waits.
    ///
    /// A sender that is faster than the members can read causes them to be disconnected. In a
    /// handler that forwards its client's messages, use [`Member::send`] instead.
    pub fn send(&self, message: impl Into<Arc<[u8]>>) -> usize {
        self.enqueue(&message.into()).reached
    }

    fn enqueue(&self, message: &Arc<[u8]>) -> Sent {
        self.0.messages.fetch_add(1, Ordering::Relaxed);
        let mut slow = Vec::new();
        let mut sent = Sent::default();
        {
            // The lock is held over all outboxes, so that every member receives messages in the
            // same order.
            let members = self.0.members();
            for (&number, outbox) in &members.outboxes {
                match outbox.enqueue(message) {
                    Enqueued::Ok => {}
                    Enqueued::HalfFull => sent.half_full.push(outbox.clone()),
                    Enqueued::Overflow => slow.push((number, outbox.clone())),
                }
            }
            sent.reached = members.outboxes.len() - slow.len();
        }
        for (number, outbox) in slow {
            self.slow_consumer(number, &outbox);
        }
        sent
    }

    /// Closes the room: no connection can join any more, and the members read the end of their
    /// input, as if their clients had half-closed. Messages sent before are still written.
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

    /// Returns the statistics of the room.
    #[must_use]
    pub fn counters(&self) -> RoomCounters {
        RoomCounters {
            members: self.0.members().outboxes.len(),
            messages: self.0.messages.load(Ordering::Relaxed),
            slow_consumer: self.0.slow_consumer.load(Ordering::Relaxed),
        }
    }

    /// Removes a slow consumer from the room and cancels its connection.
    fn slow_consumer(&self, number: u64, outbox: &Outbox) {
        self.0.members().outboxes.remove(&number);
        if outbox.mark_slow_consumer() {
            self.0.slow_consumer.fetch_add(1, Ordering::Relaxed);
            let (id, waiting) = (outbox.id(), outbox.waiting());
            tracing::debug!(%id, waiting, "a slow consumer was disconnected from its room");
        }
        outbox.cancel();
    }
}

/// The result of sending a message.
#[derive(Default)]
struct Sent {
    reached: usize,
    /// Outboxes that are more than half full.
    half_full: Vec<Arc<Outbox>>,
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Members> {
        // A std lock on purpose: it is held briefly, and no code waits while holding it. Unlike a
        // lock that parks, a destructor can take it during a panic.
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

/// The membership of a connection in a [`Room`]. Dropping it leaves the room at once.
pub struct Member {
    room: Room,
    number: u64,
    /// Maximum wait of one write.
    write_timeout: Option<Duration>,
    outbox: Arc<Outbox>,
    room_available: Arc<Notify>,
    pace: Pace,
}

/// Maximum delay of a sender when outboxes fill up faster than they are written.
const SENDER_BACKPRESSURE: Duration = Duration::from_millis(10);

impl Member {
    /// Returns the number of the connection's request.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.outbox.id()
    }

    /// Sends a message to all members of the room, including this member.
    ///
    /// Waits in three cases:
    ///
    /// * while the member's own outbox is more than half full. A client that sends continuously is
    ///   therefore read no faster than it reads. A client that reads nothing for the duration of
    ///   the write timeout is disconnected.
    /// * while the member sends faster than [`RoomLimits::byte_rate`] or
    ///   [`RoomLimits::message_rate`] allows.
    /// * for at most 10 ms if messages arrive faster than this machine writes them. This wait never
    ///   depends on another client.
    ///
    /// Under [`Pooled`](crate::Pooled), these waits occupy a pool thread.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::ConnectionAborted`] after the member was disconnected as a slow
    /// consumer. Returns [`io::ErrorKind::BrokenPipe`] after the client has disconnected.
    pub fn send(&self, message: impl Into<Arc<[u8]>>) -> io::Result<()> {
        while self.outbox.is_half_full()? {
            if !self.outbox.wait_for_progress(self.until()) {
                self.room.slow_consumer(self.number, &self.outbox);
            }
        }
        let message = message.into();
        while let Err(at) = self.pace.charge(message.len(), Instant::now()) {
            self.outbox.wait_until(at)?;
        }
        let sent = self.room.enqueue(&message);
        if !sent.half_full.is_empty() {
            let until = Instant::now() + SENDER_BACKPRESSURE;
            for outbox in &sent.half_full {
                outbox.wait_for_room(&self.room_available, until);
            }
        }
        Ok(())
    }

    /// Leaves the room, and waits until all messages sent to the member before are written to its
    /// connection. Waits for at most the write timeout.
    ///
    /// # Errors
    /// Returns the same errors as [`send`](Self::send).
    pub fn leave(self) -> io::Result<()> {
        self.remove();
        let until = self.until();
        while !self.outbox.is_written()? {
            if !self.outbox.wait_for_progress(until) {
                self.room.slow_consumer(self.number, &self.outbox);
            }
        }
        Ok(())
    }

    fn until(&self) -> Option<Instant> {
        self.write_timeout
            .and_then(|timeout| Instant::now().checked_add(timeout))
    }

    fn remove(&self) {
        self.room.0.members().outboxes.remove(&self.number);
        self.outbox.close();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.remove();
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
