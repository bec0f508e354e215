//! What waits to be written to one member of a room, and what writes it.

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

/// Messages handed to the kernel in one system call.
const BATCH: usize = 64;

/// How messages get to a member.
pub trait MessageSink: Send + Sync + 'static {
    fn socket(&self) -> &Socket;

    /// Writes messages, all of them, and tells of each piece that was written.
    fn write(&self, batch: &[Arc<[u8]>], progress: &mut dyn FnMut()) -> io::Result<()>;
}

/// As they are.
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
    way: Box<dyn MessageSink>,
    state: Mutex<State>,
    slow_consumer: AtomicBool,
    /// There is something to write, or nothing will come any more.
    filled: Notify,
    /// Something was written, or nothing will be.
    written: Notify,
    /// The connection was cut, or writing to it has failed.
    ended: Arc<Notify>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Arc<[u8]>>,
    /// Of these, so many are being written.
    writing: usize,
    writing_since: Option<Instant>,
    bytes: usize,
    /// Who wait until it is no longer half full.
    waiters: Vec<Arc<Notify>>,
    /// Nothing is put in any more.
    closed: bool,
    /// Why nothing is written any more.
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

/// What came of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Enqueued {
    Ok,
    /// The outbox is more than half full.
    HalfFull,
    /// The member does not read.
    Overflow,
}

/// A write that takes longer waits for the peer, and not for its turn on this machine.
const WRITE_STALL: Duration = Duration::from_millis(10);

impl Outbox {
    pub(super) fn new(id: RequestId, way: impl MessageSink, limits: RoomLimits) -> Self {
        let ended = Arc::<Notify>::default();
        way.socket().raise_if_cut(&ended);
        Self {
            id,
            limits,
            way: Box::new(way),
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

    /// Messages that wait.
    pub(super) fn waiting(&self) -> usize {
        self.state().queue.len()
    }

    pub(super) fn put(&self, message: &Arc<[u8]>) -> Enqueued {
        let mut state = self.state();
        if state.closed {
            return Enqueued::Ok;
        }
        let is_over = |state: &State| {
            state.queue.len() >= self.limits.messages
                || state.bytes + message.len() > self.limits.bytes
        };
        if !state.queue.is_empty() && is_over(&state) {
            return Enqueued::Overflow;
        }
        let was_empty = state.queue.is_empty();
        state.queue.push_back(message.clone());
        state.bytes += message.len();
        let filling = self.is_filling(&state);
        drop(state);
        if was_empty {
            self.filled.notify();
        }
        if filling {
            Enqueued::HalfFull
        } else {
            Enqueued::Ok
        }
    }

    fn is_filling(&self, state: &State) -> bool {
        state.queue.len() > self.limits.messages / 2 || state.bytes > self.limits.bytes / 2
    }

    /// Waits until it is no longer half full; but never for a peer that does not read, and not
    /// beyond `until`.
    pub(super) fn wait_for_room(&self, signal: &Arc<Notify>, until: Instant) {
        {
            let mut state = self.state();
            let stuck = state
                .writing_since
                .is_some_and(|since| since.elapsed() > WRITE_STALL);
            if stuck || !self.is_filling(&state) {
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

    /// Whether its client had better read before it sends more.
    pub(super) fn is_half_full(&self) -> io::Result<bool> {
        let state = self.state();
        match state.failed {
            Some(kind) => Err(self.failure(kind)),
            None => Ok(self.is_filling(&state)),
        }
    }

    /// Whether there is nothing left to write.
    pub(super) fn is_written(&self) -> io::Result<bool> {
        let state = self.state();
        match state.failed {
            Some(kind) => Err(self.failure(kind)),
            None => Ok(state.queue.is_empty()),
        }
    }

    /// Waits until something was written; `false` if `until` has passed first.
    pub(super) fn wait_for_progress(&self, until: Option<Instant>) -> bool {
        self.written.wait(until)
    }

    /// Waits until then; fails if the connection is cut meanwhile, or is gone.
    pub(super) fn rest_until(&self, until: Instant) -> io::Result<()> {
        self.ended.wait(Some(until));
        if self.way.socket().is_cancelled() {
            return Err(self.way.socket().cancelled());
        }
        match self.state().failed {
            Some(kind) => Err(self.failure(kind)),
            None => Ok(()),
        }
    }

    /// Nothing is put in any more; what is there is written.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.filled.notify();
    }

    /// The member's client seems to have left.
    pub(super) fn end_input(&self) {
        let _ = self.way.socket().shutdown(Shutdown::Read);
    }

    /// Whether this is the first time that it is found not to be read.
    pub(super) fn is_first_time(&self) -> bool {
        !self.slow_consumer.swap(true, Ordering::Relaxed)
    }

    pub(super) fn cut(&self) {
        self.way.socket().cancel(CancelReason::SlowConsumer);
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

    /// Writes what is put in, until the outbox is closed and empty, or a write fails.
    pub(super) fn write_all(&self) -> io::Result<()> {
        while let Some(batch) = self.next_batch() {
            let written = self.way.write(&batch, &mut || self.written.notify());
            written.inspect_err(|error| {
                // One that does not read is cut by the room, which counts it first.
                if error.kind() != io::ErrorKind::TimedOut {
                    self.stop(error.kind());
                }
            })?;
            let mut state = self.state();
            // They stood in the queue, and counted, until now.
            let done = std::mem::take(&mut state.writing);
            let bytes: usize = state.queue.drain(..done).map(|message| message.len()).sum();
            state.bytes -= bytes;
            state.writing_since = None;
            let waiters = if self.is_filling(&state) {
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
            io::ErrorKind::ConnectionAborted => self.way.socket().cancelled(),
            kind => kind.into(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // As for the room's own lock: held for moments only.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
