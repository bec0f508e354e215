//! The outbox of a room member: the queue of messages, and the loop that writes them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::RoomLimits;
use crate::RequestId;
use crate::connection::WriteHalf;
use crate::notify::Notify;
use crate::socket::{CancelReason, Socket};

/// Maximum number of messages in one system call.
const BATCH: usize = 64;

/// A destination of a member's messages.
pub trait MessageSink: Send + Sync + 'static {
    fn socket(&self) -> &Socket;

    /// Writes all messages of a batch, and calls `progress` after each partial write.
    fn write(&self, batch: &[Arc<[u8]>], progress: &mut dyn FnMut()) -> io::Result<()>;
}

/// Writes messages unchanged.
impl MessageSink for WriteHalf {
    fn socket(&self) -> &Socket {
        self.socket()
    }

    fn write(&self, batch: &[Arc<[u8]>], progress: &mut dyn FnMut()) -> io::Result<()> {
        let mut slices: Vec<_> = batch.iter().map(|message| IoSlice::new(message)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match self.send(left)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => IoSlice::advance_slices(&mut left, n),
            }
            progress();
        }
        Ok(())
    }
}

pub(super) struct Outbox {
    id: RequestId,
    limits: RoomLimits,
    sink: Box<dyn MessageSink>,
    state: Mutex<State>,
    slow_consumer: AtomicBool,
    /// Notified when the queue becomes non-empty or closed.
    filled: Notify,
    /// Notified after a write, or when no further write will happen.
    written: Notify,
    /// Notified when the connection is cancelled or a write fails.
    ended: Arc<Notify>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Arc<[u8]>>,
    /// Number of queued messages that are being written.
    writing: usize,
    writing_since: Option<Instant>,
    bytes: usize,
    /// Senders that wait until the outbox is no longer half full.
    waiters: Vec<Arc<Notify>>,
    /// True if the outbox accepts no further messages.
    closed: bool,
    /// The error after which nothing is written any more.
    failed: Option<io::ErrorKind>,
}

impl State {
    fn fail(&mut self, kind: io::ErrorKind) {
        self.failed.get_or_insert(kind);
        self.closed = true;
        self.queue.clear();
        (self.writing, self.bytes) = (0, 0);
        self.writing_since = None;
    }
}

/// The result of enqueueing a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Enqueued {
    Ok,
    /// The outbox is more than half full after this message.
    HalfFull,
    /// The outbox is full because the member does not read.
    Overflow,
}

/// Minimum duration of a write that waits for the peer, and not for CPU time on this machine.
const WRITE_STALL: Duration = Duration::from_millis(10);

impl Outbox {
    pub(super) fn new(id: RequestId, sink: impl MessageSink, limits: RoomLimits) -> Self {
        let ended = Arc::<Notify>::default();
        sink.socket().notify_on_cancel(&ended);
        Self {
            id,
            limits,
            sink: Box::new(sink),
            state: Mutex::default(),
            slow_consumer: AtomicBool::new(false),
            filled: Notify::default(),
            written: Notify::default(),
            ended,
        }
    }

    pub(super) fn id(&self) -> RequestId {
        self.id
    }

    /// Returns the number of queued messages.
    pub(super) fn waiting(&self) -> usize {
        self.state().queue.len()
    }

    pub(super) fn enqueue(&self, message: &Arc<[u8]>) -> Enqueued {
        let mut state = self.state();
        if state.closed {
            return Enqueued::Ok;
        }
        let is_full = |state: &State| {
            state.queue.len() >= self.limits.messages
                || state.bytes + message.len() > self.limits.bytes
        };
        if !state.queue.is_empty() && is_full(&state) {
            return Enqueued::Overflow;
        }
        let was_empty = state.queue.is_empty();
        state.queue.push_back(message.clone());
        state.bytes += message.len();
        let is_half_full = self.exceeds_half(&state);
        drop(state);
        if was_empty {
            self.filled.notify();
        }
        if is_half_full {
            Enqueued::HalfFull
        } else {
            Enqueued::Ok
        }
    }

    fn exceeds_half(&self, state: &State) -> bool {
        state.queue.len() > self.limits.messages / 2 || state.bytes > self.limits.bytes / 2
    }

    /// Waits until the outbox is no longer half full, at most until `until`. Returns at once if the
    /// peer does not read.
    pub(super) fn wait_for_room(&self, signal: &Arc<Notify>, until: Instant) {
        {
            let mut state = self.state();
            let is_stalled = state
                .writing_since
                .is_some_and(|since| since.elapsed() > WRITE_STALL);
            if is_stalled || !self.exceeds_half(&state) {
                return;
            }
            state.waiters.push(signal.clone());
        }
        if !signal.wait(Some(until)) {
            let mut state = self.state();
            state
                .waiters
                .retain(|waiting| !Arc::ptr_eq(waiting, signal));
        }
    }

    /// Returns true if the client must read before it sends more.
    pub(super) fn is_half_full(&self) -> io::Result<bool> {
        let state = self.state();
        match state.failed {
            Some(kind) => Err(self.failure(kind)),
            None => Ok(self.exceeds_half(&state)),
        }
    }

    /// Returns true if the queue is empty.
    pub(super) fn is_written(&self) -> io::Result<bool> {
        let state = self.state();
        match state.failed {
            Some(kind) => Err(self.failure(kind)),
            None => Ok(state.queue.is_empty()),
        }
    }

    /// Waits until some bytes were written. Returns `false` if `until` passes first.
    pub(super) fn wait_for_progress(&self, until: Option<Instant>) -> bool {
        self.written.wait(until)
    }

    /// Waits until `until`. Fails if the connection is cancelled or the client disconnects.
    pub(super) fn wait_until(&self, until: Instant) -> io::Result<()> {
        self.ended.wait(Some(until));
        if self.sink.socket().is_cancelled() {
            return Err(self.sink.socket().cancelled());
        }
        match self.state().failed {
            Some(kind) => Err(self.failure(kind)),
            None => Ok(()),
        }
    }

    /// Closes the outbox to further messages. Queued messages are still written.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.filled.notify();
    }

    /// Lets the handler read the end of its client's input.
    pub(super) fn end_input(&self) {
        let _ = self.sink.socket().shutdown(Shutdown::Read);
    }

    /// Marks the member as a slow consumer. Returns true the first time.
    pub(super) fn mark_slow_consumer(&self) -> bool {
        !self.slow_consumer.swap(true, Ordering::Relaxed)
    }

    pub(super) fn cancel(&self) {
        self.sink.socket().cancel(CancelReason::SlowConsumer);
        self.stop(io::ErrorKind::ConnectionAborted);
    }

    fn stop(&self, kind: io::ErrorKind) {
        let waiters = {
            let mut state = self.state();
            state.fail(kind);
            std::mem::take(&mut state.waiters)
        };
        self.filled.notify();
        self.written.notify();
        self.ended.notify();
        waiters.iter().for_each(|waiter| waiter.notify());
    }

    /// Writes queued messages until the outbox is closed and empty, or a write fails.
    pub(super) fn write_all(&self) -> io::Result<()> {
        while let Some(batch) = self.next_batch() {
            let written = self.sink.write(&batch, &mut || self.written.notify());
            written.inspect_err(|error| {
                // The room handles a time-out: it counts the slow consumer before it cancels the
                // connection.
                if error.kind() != io::ErrorKind::TimedOut {
                    self.stop(error.kind());
                }
            })?;
            let mut state = self.state();
            // Messages stay in the queue, and count against the limits, until they are written.
            let done = std::mem::take(&mut state.writing);
            let bytes: usize = state.queue.drain(..done).map(|message| message.len()).sum();
            state.bytes -= bytes;
            state.writing_since = None;
            let waiters = if self.exceeds_half(&state) {
                Vec::new()
            } else {
                std::mem::take(&mut state.waiters)
            };
            drop(state);
            self.written.notify();
            waiters.iter().for_each(|waiter| waiter.notify());
        }
        Ok(())
    }

    fn next_batch(&self) -> Option<Vec<Arc<[u8]>>> {
        loop {
            {
                let mut state = self.state();
                if !state.queue.is_empty() {
                    let batch: Vec<_> = state.queue.iter().take(BATCH).cloned().collect();
                    state.writing = batch.len();
                    state.writing_since = Some(Instant::now());
                    return Some(batch);
                }
                if state.closed {
                    return None;
                }
            }
            self.filled.wait(None);
        }
    }

    fn failure(&self, kind: io::ErrorKind) -> io::Error {
        match kind {
            io::ErrorKind::ConnectionAborted => self.sink.socket().cancelled(),
            kind => kind.into(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Held briefly, like the room's own lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
