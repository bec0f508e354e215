//! A server's turn in the accept loop: accept requests, admit them, and dispatch them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::accept_loop::{
    ChildWatcher, LoopMember, ModelTraits, RunUntil, TickResult, Token, Watch,
};
use super::backoff::{AcceptErrorClass, BackOff};
use super::drain::Drain;
use super::drop_report::DropReporter;
use super::handle::{RequestGuard, ServerHandle};
use super::pending::AcceptedRequest;
use super::poller::Poller;
use super::queue::Queue;
use super::session::sealed::Request as _;
use super::task::Task;
use super::{Hooks, RequestOutcome, Server};
use crate::admission::PeerPermit;
use crate::concurrency::{Concurrency, Dispatch, OverloadPolicy};
use crate::event::{Event, Rejection};
use crate::park::Parker;
use crate::timeouts::earliest;
use crate::transport::{Accepted, Transport};
use crate::user_code::call_user_code;
use crate::{Address, ServeError};

/// The maximum number of requests that one listener accepts before other listeners and commands get
/// a turn.
const BUDGET: usize = 64;

/// The number of consecutive empty accepts after which the listener pauses.
const MAX_EMPTY_ACCEPTS: u32 = 256;

fn spurious_readiness() -> std::io::Error {
    std::io::Error::other("the socket is reported as ready again and again, and has nothing")
}

/// A listening socket in the accept loop.
pub(super) struct ListenerSlot<T: Transport> {
    pub(super) listener: T::Listener,
    pub(super) address: Arc<Address>,
    armed: Armed,
    ready: bool,
    /// epoll has reported a client while no slot was free.
    pub(super) is_waited_at: bool,
    /// The last accept returned nothing.
    pub(super) empty: bool,
    /// The number of accepts since the last request.
    empty_accepts: u32,
    pub(super) drops: DropReporter,
}

impl<T: Transport> ListenerSlot<T> {
    pub(super) fn new(listener: T::Listener, address: Address) -> Self {
        Self {
            listener,
            address: Arc::new(address),
            armed: Armed::No,
            ready: false,
            is_waited_at: false,
            empty: false,
            empty_accepts: 0,
            drops: DropReporter::default(),
        }
    }

    /// Counts an accept that returned nothing. Returns true if it is time to back off. An
    /// occasional empty accept is normal when processes share a listener. A listener that epoll
    /// always reports as ready but that never yields a connection (because it has an error queue,
    /// say) would spin the loop.
    fn count_empty_accept(&mut self) -> bool {
        self.empty_accepts = self.empty_accepts.saturating_add(1);
        self.empty_accepts >= MAX_EMPTY_ACCEPTS
    }

    /// Resets the count after an accept that returned a request.
    pub(super) fn reset_empty_accepts(&mut self) {
        self.empty_accepts = 0;
    }

    /// Makes the next attempt accept from this listener, whether epoll reports it or not.
    pub(super) fn mark_ready(&mut self) {
        self.ready = true;
    }

    pub(super) fn disarm(&mut self, poller: &Poller) {
        if std::mem::take(&mut self.armed) != Armed::No {
            poller.remove(&self.listener);
        }
    }

    /// Requests one report of the next client.
    pub(super) fn watch_once_more(
        &mut self,
        poller: &Poller,
        member: u32,
        index: usize,
    ) -> Result<(), ServeError> {
        self.is_waited_at = false;
        self.armed = Armed::No;
        let index = super::accept_loop::narrow(index);
        self.arm(poller, Token::Listener { member, index }, Armed::Once)
    }

    /// Adds the listener to the epoll set, or requests one report of the next client because no
    /// slot is free.
    fn arm(&mut self, poller: &Poller, source: Token, how: Armed) -> Result<(), ServeError> {
        if self.armed == how {
            return Ok(());
        }
        if how == Armed::Once {
            poller.add_once(&self.listener, source)?;
        } else {
            poller.add(&self.listener, source)?;
            self.is_waited_at = false;
        }
        self.armed = how;
        Ok(())
    }
}

/// The registration of a listener in the epoll set. A closed one is removed, because epoll reports
/// errors for every registered descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Armed {
    #[default]
    No,
    Once,
    Always,
}

/// The state that the accept loop keeps about one server between two turns.
pub(super) struct LoopState<R> {
    /// A request that no thread or process could be started for yet.
    pub(super) pending: Option<AcceptedRequest<R>>,
    /// Requests that wait for a slot.
    pub(super) queue: Queue<R>,
    pub(super) back_off: BackOff,
    /// The number of recently cancelled requests whose slots are not taken yet, and the time of the
    /// last.
    pub(super) room_made: (usize, Option<Instant>),
    pub(super) drain: Option<Drain>,
    pub(super) closed: bool,
    /// The server stops only until the next call of `handle_request`.
    pauses: bool,
    until: RunUntil,
    pub(super) member: u32,
    next_action: Option<Instant>,
}

impl<R> Default for LoopState<R> {
    fn default() -> Self {
        Self {
            pending: None,
            queue: Queue::default(),
            back_off: BackOff::default(),
            room_made: (0, None),
            drain: None,
            closed: false,
            pauses: false,
            until: RunUntil::Stopped,
            member: 0,
            next_action: None,
        }
    }
}

/// The result of an accept turn.
pub(super) enum AcceptResult {
    /// The number of accepted requests.
    Some(usize),
    InChild(Box<dyn FnOnce() -> i32>),
}

impl<T: Transport, C: Concurrency> LoopMember for Server<T, C> {
    fn model(&self) -> ModelTraits {
        ModelTraits {
            name: C::NAME,
            forks: C::FORKS,
            has_threads: !C::FORKS && !C::IS_INLINE,
            hands_off_to_workers: self.concurrency.hands_off_to_workers(),
        }
    }

    fn handle(&self) -> ServerHandle {
        ServerHandle(self.shared.clone())
    }

    fn loop_parker(&self) -> Option<Arc<dyn Parker>> {
        self.concurrency.loop_parker()
    }

    fn enter(&mut self, poller: &Poller, member: u32, until: RunUntil) -> Result<(), ServeError> {
        self.concurrency.check()?;
        self.take_over()?;
        if !self.shared.lifecycle.enter() {
            return Err(ServeError::Closed);
        }
        let entered = poller
            .add(&self.shared.lifecycle, Token::Waker { member })
            .and_then(|()| {
                self.concurrency
                    .watch_children(&ChildWatcher { poller, member })
            });
        if let Err(error) = entered {
            self.shared.lifecycle.leave(false);
            self.shared.report_state();
            return Err(error);
        }
        self.progress.until = until;
        self.progress.member = member;
        // Waiting requests are accepted without asking epoll, even if the timeout is zero.
        self.listeners.iter_mut().for_each(ListenerSlot::mark_ready);
        self.progress.next_action = match (&self.hooks.service_actions, until) {
            (Some((interval, _)), RunUntil::Stopped) => Instant::now().checked_add(*interval),
            _ => None,
        };
        Ok(())
    }

    fn ready(&mut self, poller: &Poller, source: Token) {
        match source {
            Token::Waker { .. } => {
                self.shared.lifecycle.on_wakeup();
                // A request may have ended and freed the missing resource.
                self.progress.back_off.retry_now();
            }
            Token::Listener { index, .. } => {
                if let Some(listener) = self.listeners.get_mut(index as usize) {
                    listener.ready = true;
                    listener.is_waited_at = listener.armed == Armed::Once;
                }
            }
            Token::Child { member, pid } => {
                self.concurrency
                    .collect_child(pid, &ChildWatcher { poller, member });
                self.progress.back_off.retry_now();
            }
            Token::Watch { .. } => {}
        }
    }

    fn tick(&mut self, poller: &Poller, now: Instant) -> Result<TickResult, ServeError> {
        self.shared.report_state();
        let commands = self.shared.lifecycle.commands();
        if let Some(until) = commands.drain {
            return self.drain_tick(poller, now, until);
        }
        if commands.stop {
            return Ok(TickResult::Done(RequestOutcome::Stopped));
        }
        self.service_actions(now);
        if self.rejections.expire(now) {
            // The descriptor of the next request that ends refills the reserve.
            self.shared.request_wakeup();
        }
        match self.accept(poller, now)? {
            AcceptResult::InChild(task) => return Ok(TickResult::InChild(task)),
            AcceptResult::Some(n) if n > 0 => {
                if let RunUntil::OneRequest(_) = self.progress.until {
                    self.progress.pauses = true;
                    return Ok(TickResult::Done(RequestOutcome::Request));
                }
            }
            AcceptResult::Some(_) => {}
        }
        // Handlers of a sequential server have just run, so their commands come first.
        let (commands, now) = (self.shared.lifecycle.commands(), Instant::now());
        if commands.stop || commands.drain.is_some() {
            return Ok(TickResult::Sleep(Some(now)));
        }
        // A handler may have consumed the wake-up instead of the loop, so the state is reported here.
        self.shared.report_state();
        let mut wake_at = earliest(self.arm(poller, now)?, self.progress.next_action);
        if let RunUntil::OneRequest(Some(end)) = self.progress.until {
            if end <= now {
                self.handle_timeout();
                self.progress.pauses = true;
                return Ok(TickResult::Done(RequestOutcome::TimedOut));
            }
            wake_at = earliest(wake_at, Some(end));
        }
        Ok(TickResult::Sleep(wake_at))
    }

    fn leave(&mut self, poller: &Poller) {
        poller.remove(&self.shared.lifecycle);
        for listener in &mut self.listeners {
            listener.disarm(poller);
            listener.ready = false;
        }
        if std::mem::take(&mut self.progress.pauses) {
            self.shared.lifecycle.pause();
        } else {
            self.shared.lifecycle.leave(self.progress.closed);
        }
        self.shared.report_state();
    }

    fn abandon_in_child(&mut self) {
        self.shared.abandon_in_child();
        self.listeners.clear();
        self.watches.drain(..).for_each(Watch::abandon_in_child);
        self.poller = None;
        self.progress.pending = None;
        self.progress.queue.clear();
        self.rejections.abandon_in_child();
        self.concurrency.abandon_in_child();
    }
}

impl<T: Transport, C: Concurrency> Server<T, C> {
    /// Takes over a server that was bound before a fork, so that the serving process cleans up.
    fn take_over(&self) -> Result<(), ServeError> {
        if self.shared.lifecycle.is_owner() {
            return Ok(());
        }
        let taken = self.shared.lifecycle.take_over();
        taken.map_err(|source| ServeError::Resources {
            step: "take the server over",
            source,
        })?;
        for listener in &self.listeners {
            T::take_over(&listener.listener);
        }
        Ok(())
    }

    /// Accepts requests from the listeners that are ready, while slots are free.
    pub(super) fn accept(
        &mut self,
        poller: &Poller,
        now: Instant,
    ) -> Result<AcceptResult, ServeError> {
        let mut taken = 0;
        self.accept_context.timeouts = self.shared.timeouts();
        if self.progress.back_off.until(now).is_some() {
            // Expired requests end in any case, and the loop wakes up for them.
            self.refuse_overdue();
            return Ok(AcceptResult::Some(0));
        }
        if let Some(job) = self.progress.pending.take() {
            match self.dispatch(job, 0, poller, now)? {
                Some(child) => return Ok(AcceptResult::InChild(child)),
                None if self.progress.pending.is_some() => {
                    self.refuse_overdue();
                    return Ok(AcceptResult::Some(0));
                }
                None => taken += 1,
            }
        }
        while let Some(job) = self.next_queued() {
            taken += 1;
            if let Some(child) = self.dispatch(job, 0, poller, now)? {
                return Ok(AcceptResult::InChild(child));
            }
        }
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            if !std::mem::take(&mut listener.ready) && !T::has_received(&listener.listener) {
                continue;
            }
            self.accept_context.emptied = false;
            // A handler that the loop runs itself may have requested a stop, so commands are
            // checked after each.
            for _ in 0..if C::IS_INLINE { 1 } else { BUDGET } {
                let one = matches!(self.progress.until, RunUntil::OneRequest(_)) && taken > 0;
                if one || self.progress.pending.is_some() || self.must_wait() {
                    return Ok(AcceptResult::Some(taken));
                }
                // Requests beyond the rate stay in the kernel until the rate allows them.
                let Ok(pace) = self.shared.admission.pace() else {
                    return Ok(AcceptResult::Some(taken));
                };
                let takes = self.concurrency.takes_now();
                if takes == 0 {
                    return Ok(AcceptResult::Some(taken));
                }
                let room = self.room();
                self.accept_context.room = self.want(room).min(pace).min(takes);
                let has_room = room > 0;
                let listener = &mut self.listeners[index];
                listener.empty = false;
                let got = T::get_request(&mut listener.listener, &mut self.accept_context);
                self.set_recv_drop_count(index);
                let request = match got {
                    Ok(Accepted::Request(request, permit)) => (request, permit),
                    Ok(Accepted::Rejected(peer, fd, rejection)) => {
                        taken += 1;
                        self.reject(peer, fd, index, &rejection);
                        continue;
                    }
                    Err(errno) => match self.accept_failed(index, errno, now)? {
                        AcceptErrorClass::Retry => continue,
                        AcceptErrorClass::Exhausted => return Ok(AcceptResult::Some(taken)),
                        AcceptErrorClass::Empty | AcceptErrorClass::Fatal => break,
                    },
                };
                taken += 1;
                self.listeners[index].reset_empty_accepts();
                let (request, permit) = request;
                if let Some(job) = self.admit(request, permit, index, has_room)
                    && let Some(child) = self.dispatch(job, index, poller, now)?
                {
                    return Ok(AcceptResult::InChild(child));
                }
            }
        }
        Ok(AcceptResult::Some(taken))
    }

    /// Registers or removes the listeners. Returns the time of the next turn without a wake-up.
    pub(super) fn arm(
        &mut self,
        poller: &Poller,
        now: Instant,
    ) -> Result<Option<Instant>, ServeError> {
        let paused = self.progress.back_off.until(now);
        let is_backing_off = paused.is_some();
        if is_backing_off {
            self.shared.request_wakeup();
        }
        let paused = paused.max(self.shared.admission.pace().err());
        let is_full = self.must_wait();
        let is_behind = self.concurrency.takes_now() == 0;
        let may_open = self.progress.pending.is_none() && paused.is_none() && !is_behind;
        let open = may_open && !is_full;
        let how = match (open, may_open && self.may_displace()) {
            (true, _) => Armed::Always,
            (false, true) => Armed::Once,
            (false, false) => Armed::No,
        };
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let source = Token::Listener {
                member: self.progress.member,
                index: super::accept_loop::narrow(index),
            };
            match how {
                Armed::No => listener.disarm(poller),
                how => listener.arm(poller, source, how)?,
            }
        }
        let paused = earliest(paused, self.make_room_for_those_who_wait(poller)?);
        if !self.progress.queue.is_empty() {
            // The last queued request has not requested a wake-up yet. The state is checked again
            // afterwards, because a request may have ended in between.
            self.shared.request_wakeup();
            if !is_backing_off && self.progress.pending.is_none() && self.has_room() {
                return Ok(Some(now));
            }
        }
        let others = earliest(self.progress.queue.wake_at(), self.rejections.wake_at());
        let others = earliest(others, self.shared.settle_displacement(now));
        let paused = earliest(paused, others);
        // epoll does not report requests that have left the kernel already.
        let waiting = self
            .listeners
            .iter()
            .any(|listener| T::has_received(&listener.listener));
        Ok(if open && waiting { Some(now) } else { paused })
    }

    /// Returns the number of further requests that may be served at once.
    fn room(&self) -> usize {
        let live = self
            .shared
            .active()
            .saturating_sub(self.progress.queue.len());
        // Read after the other counter, so that a request that resumes in between is counted twice
        // rather than never.
        let elsewhere = if self.concurrency.counts_suspended() {
            0
        } else {
            self.shared.waiting()
        };
        let here = live.saturating_sub(elsewhere);
        let by_model = self.concurrency.limit().0.saturating_sub(here);
        let at_all = self.shared.admission.max_active().saturating_sub(live);
        by_model.min(at_all)
    }

    pub(super) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// Returns the number of requests to take from the kernel at once. This is the number that can
    /// be dispatched now, because other processes that share the socket can serve the rest.
    fn want(&self, room: usize) -> usize {
        if C::IS_INLINE || matches!(self.progress.until, RunUntil::OneRequest(_)) {
            1
        } else if self.concurrency.limit().1 == OverloadPolicy::Wait {
            room
        } else {
            usize::MAX
        }
    }

    /// Returns true if the next request has to wait for another to end. That end then wakes the
    /// loop.
    fn must_wait(&self) -> bool {
        if self.concurrency.limit().1 != OverloadPolicy::Wait || self.has_room() {
            return false;
        }
        self.shared.request_wakeup();
        // Checked again, because a request may have ended before the wake-up was requested.
        !self.has_room()
    }

    /// Decides whether a request gets a handler.
    fn admit(
        &mut self,
        request: T::Request,
        permit: Option<PeerPermit>,
        listener: usize,
        has_room: bool,
    ) -> Option<AcceptedRequest<T::Request>> {
        let address = self.listeners[listener].address.clone();
        let (id, peer, socket) = (request.id(), request.peer().clone(), request.socket());
        let record = RequestGuard::enter(&self.shared, id, peer, address, socket, permit);
        self.shared.emit(&Event::Accepted(record.info()));
        let place = if has_room {
            None
        } else {
            self.place_without_room(request.peer())
        };
        let rejection = if !has_room && place.is_none() {
            Rejection::AtLimit
        } else if !self.verify_request(&request) {
            Rejection::Verify
        } else {
            let factory = self.factory.clone();
            let job = AcceptedRequest {
                request,
                record,
                factory,
            };
            let Some(until) = place else {
                self.shared.emit(&Event::Dispatched(job.info()));
                return Some(job);
            };
            self.progress.queue.push(job, until);
            return None;
        };
        self.shared
            .emit(&Event::Rejected(record.info(), &rejection));
        self.rejections.close(request, &rejection);
        None
    }

    /// Returns the time until which one more request may wait for a slot, if the queue has a place.
    pub(super) fn queue_place(&self) -> Option<Instant> {
        match self.concurrency.limit().1 {
            OverloadPolicy::Queue { patience, places } if self.progress.queue.len() < places => {
                Instant::now().checked_add(patience)
            }
            _ => None,
        }
    }

    /// Returns the next queued request, if a slot is free. Requests that have waited too long are
    /// rejected.
    fn next_queued(&mut self) -> Option<AcceptedRequest<T::Request>> {
        if self.progress.queue.is_empty() {
            return None;
        }
        // Requested before the check for a slot, so that a request that ends from here on wakes the
        // loop.
        self.shared.request_wakeup();
        if self.has_room() && self.progress.pending.is_none() {
            let job = self.progress.queue.next()?;
            self.shared.emit(&Event::Dispatched(job.info()));
            return Some(job);
        }
        self.refuse_overdue();
        None
    }

    fn refuse_overdue(&mut self) {
        while let Some(job) = self.progress.queue.overdue(Instant::now()) {
            self.refuse(job, &Rejection::AtLimit);
        }
    }

    /// Dispatches a request to the concurrency model.
    fn dispatch(
        &mut self,
        job: AcceptedRequest<T::Request>,
        listener: usize,
        poller: &Poller,
        now: Instant,
    ) -> Result<Option<Box<dyn FnOnce() -> i32>>, ServeError> {
        let children = ChildWatcher {
            poller,
            member: self.progress.member,
        };
        match self.concurrency.process_request(job, &children) {
            Dispatch::Taken => Ok(None),
            Dispatch::InChild(job) => Ok(Some(Box::new(move || job.run_in_child()))),
            Dispatch::NoRoom(job, error) => {
                self.progress.pending = Some(job);
                self.make_room();
                self.exhausted(listener, &error, now);
                Ok(None)
            }
        }
    }

    fn accept_failed(
        &mut self,
        listener: usize,
        errno: rustix::io::Errno,
        now: Instant,
    ) -> Result<AcceptErrorClass, ServeError> {
        let class = AcceptErrorClass::of(errno);
        let is_empty = class == AcceptErrorClass::Empty;
        self.listeners[listener].empty = is_empty;
        let error = errno.into();
        if (is_empty || class == AcceptErrorClass::Retry)
            && self.listeners[listener].count_empty_accept()
        {
            // Every accept fails, or none yields a client.
            let error = if is_empty {
                spurious_readiness()
            } else {
                error
            };
            self.exhausted(listener, &error, now);
            return Ok(AcceptErrorClass::Exhausted);
        }
        let address = self.listeners[listener].address.clone();
        match class {
            AcceptErrorClass::Empty => {
                if let Some(failures) = self.progress.back_off.recovered() {
                    self.shared.emit(&Event::AcceptResumed {
                        address: &address,
                        failures,
                    });
                }
            }
            AcceptErrorClass::Retry => {
                self.shared.sink.accept_failed(&error);
                self.shared.emit(&Event::AcceptFailed {
                    address: &address,
                    error: &error,
                });
            }
            AcceptErrorClass::Exhausted if self.makes_room_by_cutting(listener, errno, now) => {}
            AcceptErrorClass::Exhausted if self.makes_room_by_refusing(listener, errno, now) => {
                return Ok(AcceptErrorClass::Retry);
            }
            AcceptErrorClass::Exhausted => self.exhausted(listener, &error, now),
            AcceptErrorClass::Fatal => {
                return Err(ServeError::Accept {
                    address: address.to_string(),
                    source: error,
                });
            }
        }
        Ok(class)
    }

    pub(super) fn exhausted(&mut self, listener: usize, error: &std::io::Error, now: Instant) {
        self.shared.sink.accept_failed(error);
        if self.progress.back_off.failed(now) {
            let address = self.listeners[listener].address.clone();
            self.shared.emit(&Event::AcceptPaused {
                address: &address,
                error,
            });
        }
    }

    fn verify_request(&self, request: &T::Request) -> bool {
        let Some(verify) = &self.hooks.verify_request else {
            return true;
        };
        call_user_code(|| verify(request)).unwrap_or_else(|cause| {
            self.shared.hook_failed("verify_request", cause);
            false
        })
    }

    fn handle_timeout(&mut self) {
        if let Some(hook) = &mut self.hooks.handle_timeout
            && let Err(cause) = call_user_code(hook)
        {
            self.shared.hook_failed("handle_timeout", cause);
        }
    }

    fn service_actions(&mut self, now: Instant) {
        let Hooks {
            service_actions: Some((interval, hook)),
            ..
        } = &mut self.hooks
        else {
            return;
        };
        if self.progress.next_action.is_none_or(|at| at > now) {
            return;
        }
        let interval: Duration = *interval;
        if let Err(cause) = call_user_code(hook) {
            self.shared.hook_failed("service_actions", cause);
        }
        self.progress.next_action = Instant::now().checked_add(interval);
    }
}
