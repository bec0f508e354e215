//! The states of one connection and its request: opening, sending, waiting for an answer, closing,
//! or failed. No operation blocks.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use super::client_socket::{ClientSocket, Received};
use super::failure::{Failure, Kind};
use super::response::{Reading, ResponseMatcher};
use super::stats::record;
use super::target::Opened;
use super::worker::{Expected, Worker, pack};

/// A slot for a connection. Connections may follow each other in it.
pub(super) struct Connection {
    pub(super) state: State,
    /// The number of the connection in this slot, which separates its events from those of an earlier
    /// one.
    pub(super) generation: u32,
    /// The time at which the worker must act on the connection if no event arrives.
    pub(super) deadline: Instant,
    link: Option<ClientSocket>,
    watched: EventFlags,
    request: Option<Request>,
    /// The time at which opening began.
    began: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Down,
    /// Closed for a short time because of a failure.
    Resting,
    Opening,
    Ready,
    Busy,
    /// All bytes are sent, and the server must still read them and close.
    Lingering,
}

struct Request {
    /// The time at which the request was due.
    start: Instant,
    /// True if the request began in the measured window.
    measured: bool,
    sent: usize,
    reading: Reading,
    /// True if the answer is complete.
    whole: bool,
}

/// The pause after a failure in a closed loop. Without a pause, the tool would only count failures.
const REST: Duration = Duration::from_millis(50);

/// The deadline for connections that wait for nothing.
const NEVER: Duration = Duration::from_secs(1 << 32);

impl Connection {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Down,
            generation: 0,
            deadline: now + NEVER,
            link: None,
            watched: EventFlags::empty(),
            request: None,
            began: now,
        }
    }
}

impl Worker<'_> {
    /// Begins a due request on an open connection, or on a new one.
    pub(super) fn begin(
        &mut self,
        index: usize,
        start: Instant,
        measured: bool,
        now: Instant,
    ) -> anyhow::Result<()> {
        let slot = &mut self.slots[index];
        debug_assert!(
            slot.request.is_none(),
            "the connection already has a request"
        );
        slot.request = Some(Request {
            start,
            measured,
            sent: 0,
            reading: Reading::default(),
            whole: false,
        });
        if slot.link.is_none() {
            return self.open(index, now);
        }
        slot.deadline = start + self.plan.timeout;
        self.enter(index, State::Busy);
        self.send(index)
    }

    pub(super) fn open(&mut self, index: usize, now: Instant) -> anyhow::Result<()> {
        let slot = &mut self.slots[index];
        let start = slot.request.as_ref().map_or(now, |request| request.start);
        (slot.began, slot.deadline) = (now, start + self.plan.timeout);
        self.enter(index, State::Opening);
        self.open_again(index, now)
    }

    pub(super) fn open_again(&mut self, index: usize, now: Instant) -> anyhow::Result<()> {
        match self.plan.target.open() {
            Err(failure) => self.fail(index, failure, now),
            Ok(Opened::NotYet) => self.retry.push(index),
            Ok(Opened::ClientSocket { link, is_there }) => {
                let slot = &mut self.slots[index];
                slot.link = Some(link);
                slot.watched = EventFlags::empty();
                slot.generation = slot.generation.wrapping_add(1);
                if is_there {
                    return self.opened(index);
                }
                self.watch(index, EventFlags::OUT)?;
            }
        }
        Ok(())
    }

    fn opened(&mut self, index: usize) -> anyhow::Result<()> {
        let now = Instant::now();
        let slot = &mut self.slots[index];
        let took = now.saturating_duration_since(slot.began);
        record(&mut self.tally.connect, took);
        self.plan.progress.opened.fetch_add(1, Ordering::Relaxed);
        let Some(request) = &mut slot.request else {
            self.free(index, now);
            return self.watch(index, EventFlags::IN);
        };
        if self.rests && !self.plan.churn {
            // In a closed loop the request begins when it can be sent. The time to connect is
            // reported with the connections.
            request.start = now;
        }
        slot.deadline = request.start + self.plan.timeout;
        self.enter(index, State::Busy);
        self.send(index)
    }

    /// Handles an event of the connection.
    pub(super) fn is_ready(&mut self, index: usize, flags: EventFlags) -> anyhow::Result<()> {
        let slot = &mut self.slots[index];
        let Some(link) = &mut slot.link else {
            return Ok(());
        };
        if slot.state == State::Opening {
            return match link.continue_opening() {
                Ok(true) => self.opened(index),
                Ok(false) => {
                    let next = link.awaits();
                    self.watch(index, next)
                }
                Err(failure) => {
                    self.fail(index, failure, Instant::now());
                    Ok(())
                }
            };
        }
        if flags.intersects(EventFlags::OUT) && slot.request.is_some() {
            self.send(index)?;
        }
        // A read reports an error or a hang-up.
        if flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP) {
            self.receive(index)?;
        }
        Ok(())
    }

    fn send(&mut self, index: usize) -> anyhow::Result<()> {
        match self.try_send(index) {
            Ok(true) if self.plan.rule.answer == ResponseMatcher::None => {
                self.finish(index);
                self.watch(index, EventFlags::IN)
            }
            Ok(true) => {
                self.watch(index, EventFlags::IN)?;
                self.finish_if_whole(index);
                Ok(())
            }
            Ok(false) => self.watch(index, EventFlags::IN | EventFlags::OUT),
            Err(failure) => {
                self.fail(index, failure, Instant::now());
                Ok(())
            }
        }
    }

    /// Sends the message. Returns true if all of it is sent.
    fn try_send(&mut self, index: usize) -> Result<bool, Failure> {
        let slot = &mut self.slots[index];
        let (Some(link), Some(request)) = (&mut slot.link, &mut slot.request) else {
            return Ok(true);
        };
        while request.sent < self.plan.message.len() {
            let n = link.send(&self.plan.message[request.sent..])?;
            if n == 0 {
                return Ok(false);
            }
            request.sent += n;
            if self.in_window {
                self.tally.done.sent_bytes += n as u64;
            }
        }
        link.flush()
    }

    fn receive(&mut self, index: usize) -> anyhow::Result<()> {
        loop {
            let slot = &mut self.slots[index];
            let Some(link) = &mut slot.link else {
                return Ok(());
            };
            let received = match link.receive(&mut self.buf) {
                Ok(received) => received,
                Err(failure) => {
                    self.handle_loss(index, failure);
                    return Ok(());
                }
            };
            match received {
                Received::Nothing => break,
                Received::End => {
                    self.ended(index);
                    return Ok(());
                }
                Received::Bytes { n, more } => {
                    if self.in_window {
                        self.tally.done.received_bytes += n as u64;
                    }
                    if let Err(failure) = self.take(index, n) {
                        self.fail(index, failure, Instant::now());
                        return Ok(());
                    }
                    if !more {
                        break;
                    }
                }
            }
        }
        self.finish_if_whole(index);
        // TLS may have to reply to the data that it has read.
        match &mut self.slots[index].link {
            Some(link) if link.wants_write() => self.watch(index, EventFlags::IN | EventFlags::OUT),
            _ => Ok(()),
        }
    }

    /// Handles the bytes in the buffer.
    fn take(&mut self, index: usize, n: usize) -> Result<(), Failure> {
        let rule = &self.plan.rule;
        match &mut self.slots[index].request {
            _ if rule.answer == ResponseMatcher::None => Ok(()),
            Some(request) => {
                request.whole = request.reading.take(&self.buf[..n], rule)?;
                Ok(())
            }
            // A network may duplicate a datagram.
            None if rule.is_datagram => Ok(()),
            None => Err(Failure::new(Kind::WrongAnswer, "bytes without a request")),
        }
    }

    fn finish_if_whole(&mut self, index: usize) {
        let is_whole = |request: &Request| request.whole && request.sent == self.plan.message.len();
        if self.slots[index].request.as_ref().is_some_and(is_whole) {
            self.finish(index);
        }
    }

    /// Finishes a request that has its answer.
    fn finish(&mut self, index: usize) {
        let now = Instant::now();
        let Some(request) = self.slots[index].request.take() else {
            return;
        };
        if let Err(failure) = self.check(request.reading) {
            return self.count_failure(index, request.measured, failure, now);
        }
        self.unseen.0 += 1;
        if request.measured {
            record(
                &mut self.tally.latency,
                now.saturating_duration_since(request.start),
            );
        }
        if self.in_window {
            self.tally.done.requests += 1;
        }
        if self.lingers() && (self.plan.churn || self.is_over) {
            self.linger(index, now);
        } else if self.plan.churn {
            if let Some(link) = &mut self.slots[index].link {
                link.send_close_notify();
            }
            self.close(index);
        } else {
            self.free(index, now);
        }
    }

    fn check(&self, reading: Reading) -> Result<(), Failure> {
        match &self.plan.expected {
            Expected::Anything => Ok(()),
            Expected::This(expected) => reading.check(expected),
            Expected::First(first) => match first.get() {
                Some(first) => reading.check(first),
                None => {
                    // Another thread may have stored its answer first.
                    let _ = first.set(reading.into_kept());
                    Ok(())
                }
            },
        }
    }

    /// Handles the end of the server's side.
    fn ended(&mut self, index: usize) {
        self.finish_if_whole(index);
        match self.slots[index].state {
            State::Busy => self.fail(index, Kind::ClosedEarly.into(), Instant::now()),
            State::Ready => {
                self.tally.closed_idle += 1;
                self.drop_link(index);
            }
            State::Lingering => self.close(index),
            State::Down | State::Resting | State::Opening => {}
        }
    }

    /// Handles a lost connection. A reset between two requests counts as a close.
    fn handle_loss(&mut self, index: usize, failure: Failure) {
        self.finish_if_whole(index);
        match self.slots[index].state {
            State::Ready if failure.kind == Kind::Reset => {
                self.tally.closed_idle += 1;
                self.drop_link(index);
            }
            State::Ready | State::Busy | State::Lingering => {
                self.fail(index, failure, Instant::now());
            }
            State::Down | State::Resting | State::Opening => {}
        }
    }

    /// Counts the failure of the request, or of the attempt to connect.
    pub(super) fn fail(&mut self, index: usize, failure: Failure, now: Instant) {
        let request = self.slots[index].request.take();
        let measured = request.is_none_or(|request| request.measured);
        self.count_failure(index, measured, failure, now);
    }

    fn count_failure(&mut self, index: usize, measured: bool, failure: Failure, now: Instant) {
        self.unseen.1 += 1;
        if measured {
            self.tally.fail(failure);
        }
        let was_ready = self.slots[index].state == State::Ready;
        self.drop_link(index);
        if was_ready {
            // The slot is already among those without a request.
        } else if self.rests {
            self.enter(index, State::Resting);
            self.slots[index].deadline = now + REST;
        } else {
            self.down.push_back(index);
        }
    }

    /// Handles an expired deadline.
    pub(super) fn handle_timeout(&mut self, index: usize, now: Instant) {
        match self.slots[index].state {
            State::Opening => self.fail(index, Kind::ConnectTimeout.into(), now),
            State::Busy => self.fail(index, Kind::Timeout.into(), now),
            // The server has received the message even if it does not close.
            State::Lingering => self.close(index),
            State::Resting => {
                self.enter(index, State::Down);
                self.down.push_back(index);
            }
            State::Down | State::Ready => {}
        }
        let slot = &mut self.slots[index];
        if matches!(slot.state, State::Down | State::Ready) {
            slot.deadline = now + NEVER;
        }
    }

    /// Returns true if the connection is half-closed and the server must close it. If the server
    /// sends no answers, its close shows that all data has arrived.
    pub(super) fn lingers(&self) -> bool {
        self.plan.rule.answer == ResponseMatcher::None && !self.plan.rule.is_datagram
    }

    pub(super) fn linger(&mut self, index: usize, now: Instant) {
        if let Some(link) = &mut self.slots[index].link {
            link.half_close();
            self.slots[index].deadline = now + self.plan.timeout;
            self.enter(index, State::Lingering);
        }
    }

    fn free(&mut self, index: usize, now: Instant) {
        self.enter(index, State::Ready);
        self.slots[index].deadline = now + NEVER;
        self.ready.push_back(index);
    }

    fn close(&mut self, index: usize) {
        self.drop_link(index);
        self.down.push_back(index);
    }

    /// Closes the connection in any state. Later datagrams of the server are lost.
    fn drop_link(&mut self, index: usize) {
        self.enter(index, State::Down);
        let slot = &mut self.slots[index];
        slot.link = None;
        // Pending events of the old connection are ignored.
        slot.generation = slot.generation.wrapping_add(1);
    }

    fn enter(&mut self, index: usize, state: State) {
        let is_busy = |state| matches!(state, State::Opening | State::Busy | State::Lingering);
        let before = std::mem::replace(&mut self.slots[index].state, state);
        self.busy = self.busy + usize::from(is_busy(state)) - usize::from(is_busy(before));
        self.opening = self.opening + usize::from(state == State::Opening)
            - usize::from(before == State::Opening);
    }

    /// Sets the events that the connection waits for.
    fn watch(&mut self, index: usize, flags: EventFlags) -> anyhow::Result<()> {
        let slot = &mut self.slots[index];
        let Some(link) = &slot.link else {
            return Ok(());
        };
        let data = pack(index, slot.generation);
        if slot.watched.is_empty() {
            epoll::add(&self.epoll, link, data, flags)?;
        } else if slot.watched != flags {
            epoll::modify(&self.epoll, link, data, flags)?;
        }
        slot.watched = flags;
        Ok(())
    }
}
