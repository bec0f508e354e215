//! The handle on a running server: stops it, waits for it, and inspects it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::process::pidfd_send_signal;

use super::displacement::{Displacement, Displacer, Held, Holding};
use super::lifecycle::Lifecycle;
use super::state::ServerState;
#[cfg(feature = "green")]
use super::task::RequestLabel;
use crate::Result;
use crate::address::Address;
use crate::admission::{Admission, AdmissionControl, PeerKey, PeerPermit};
use crate::concurrency::CANCEL_SIGNAL;
use crate::datagram::AmplificationExceeded;
use crate::error::io_kind;
use crate::event::{Counters, EndReason, Event, EventSink, Rejection, RequestSummary};
use crate::preamble::PreambleConfig;
use crate::socket::{CancelReason, Socket};
use crate::timeouts::{Timeouts, nonzero};
use crate::user_code::{
    HandlerError, HandlerErrorKind, call_user_code, catch_panic, drop_catching_panic,
};

/// The number of a request, unique in its server and counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

impl RequestId {
    /// Returns the number as an integer.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for RequestId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The facts about a request besides its bytes: number, addresses and age.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    id: RequestId,
    peer: Address,
    listener: Arc<Address>,
    accepted: Instant,
    #[cfg(feature = "proxy")]
    proxy: Option<Arc<Address>>,
}

impl RequestInfo {
    pub(crate) fn new(id: RequestId, peer: Address, listener: Arc<Address>) -> Self {
        Self {
            id,
            peer,
            listener,
            accepted: Instant::now(),
            #[cfg(feature = "proxy")]
            proxy: None,
        }
    }

    /// Returns the number of the request.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Returns the address of the sender. Behind a trusted proxy (`Builder::proxy_protocol`), this
    /// is the client that the proxy's header names, once that header has arrived.
    #[must_use]
    pub fn peer(&self) -> &Address {
        &self.peer
    }

    /// Returns the proxy that forwarded the request, once its header has arrived.
    #[cfg(feature = "proxy")]
    #[must_use]
    pub fn proxy(&self) -> Option<&Address> {
        self.proxy.as_deref()
    }

    /// Returns the address of the listener that accepted the request.
    #[must_use]
    pub fn listener(&self) -> &Address {
        &self.listener
    }

    /// Returns the time since the request was accepted.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.accepted.elapsed()
    }
}

/// A request that has been accepted and has not ended; see [`ServerHandle::active`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ActiveRequest {
    /// The number, the addresses and the age of the request.
    pub info: RequestInfo,
    /// Bytes received so far. Zero if a child process counts them.
    pub received: u64,
    /// Bytes sent so far. Zero if a child process counts them.
    pub sent: u64,
    /// The current state of the request.
    pub state: RequestState,
}

/// The state of an active request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestState {
    /// The request waits for a slot: [`OverloadPolicy::Queue`](crate::OverloadPolicy::Queue).
    Queued,
    /// The request is being served, or is about to be.
    Serving,
    /// The request is [suspended](crate::Connection::suspend_until_readable): its handler is called
    /// again when more bytes arrive.
    Waiting,
    /// The server has cancelled the request, and its handler has not ended yet.
    Cancelled,
}

impl fmt::Display for RequestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` applies the width of the format string.
        f.pad(match self {
            Self::Queued => "queued",
            Self::Serving => "serving",
            Self::Waiting => "waiting",
            Self::Cancelled => "cancelled",
        })
    }
}

/// The result of a drain; see [`ServerHandle::drain`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Requests that waited in the backlog when the drain began and were accepted.
    pub queued: u64,
    /// Requests that ended by themselves during the drain.
    pub finished: u64,
    /// Requests that were accepted after the deadline, only to be closed.
    pub refused: u64,
    /// Requests that were cancelled at the deadline.
    pub cancelled: u64,
    /// Cancelled requests whose handlers had not ended a second later, and were left behind.
    pub abandoned: u64,
    /// The duration of the drain.
    pub elapsed: Duration,
}

pub(crate) type HandleError = Box<dyn Fn(&RequestInfo, &HandlerError) -> Result<()> + Send + Sync>;

/// The state that a server shares with its handles and its requests.
pub(crate) struct Shared {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) sink: EventSink,
    handle_error: Option<HandleError>,
    table: Mutex<BTreeMap<RequestId, Arc<Entry>>>,
    active: AtomicUsize,
    /// Of the active requests, those suspended between two calls of their handlers.
    paused: AtomicUsize,
    /// The number of requests that wait for their peers, including those that have no handler yet.
    waiting: AtomicUsize,
    /// Of the active requests, those that wait for a slot.
    queued: AtomicUsize,
    next_id: AtomicU64,
    /// The accept loop waits for a request to end, and the next request that ends wakes it.
    wakeup_requested: AtomicBool,
    /// This is the copy in a forked child. Requests that the child drops are still active in the
    /// parent.
    is_copy: AtomicBool,
    /// Requests that ended since a drain was requested: by themselves, and cancelled.
    ended_in_drain: [AtomicU64; 2],
    /// The progress of a drain, and whether it is complete.
    drained: Mutex<(DrainReport, bool)>,
    /// The state of the last `StateChanged` event.
    last_reported: Mutex<ServerState>,
    /// The number of requests that the concurrency model serves at once.
    limit: usize,
    displacer: Displacer,
    pub(crate) admission: Arc<AdmissionControl>,
    pub(crate) preamble: PreambleConfig,
    timeouts: Mutex<Arc<Timeouts>>,
}

/// The time that a client which connected just before a drain has for its first request.
pub(crate) const NEWCOMER: Duration = Duration::from_millis(250);

impl Shared {
    pub(crate) fn new(
        sink: EventSink,
        handle_error: Option<HandleError>,
        timeouts: Timeouts,
        preamble: PreambleConfig,
        limit: usize,
        displacement: Displacement,
        forks: bool,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            lifecycle: Lifecycle::new(forks)?,
            sink,
            handle_error,
            table: Mutex::new(BTreeMap::new()),
            active: AtomicUsize::new(0),
            paused: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            wakeup_requested: AtomicBool::new(false),
            is_copy: AtomicBool::new(false),
            ended_in_drain: [const { AtomicU64::new(0) }; 2],
            drained: Mutex::default(),
            last_reported: Mutex::new(ServerState::Bound),
            limit,
            displacer: Displacer::new(displacement),
            admission: Arc::default(),
            preamble,
            timeouts: Mutex::new(Arc::new(timeouts)),
        }))
    }

    /// Returns the time limits that new requests start with.
    pub(crate) fn timeouts(&self) -> Arc<Timeouts> {
        lock(&self.timeouts).clone()
    }

    pub(crate) fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the number of requests that have been accepted and have not ended.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }

    /// Returns the number of requests that are suspended between two calls of their handlers.
    pub(crate) fn paused(&self) -> usize {
        self.paused.load(Ordering::SeqCst)
    }

    /// Returns the number of requests that wait for their peers in a suspension of any kind.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Returns the time until which a drain leaves a new client alone, because its first request
    /// may be on the way. Returns `None` if its input may be ended at once.
    pub(crate) fn newcomer_until(&self, info: &RequestInfo) -> Option<Instant> {
        let now = Instant::now();
        // A child does not know when the drain began. There only the client's own age counts, and
        // the child checks again.
        let since = self.lifecycle.draining_since();
        let is_late = since.is_some_and(|since| now >= since + NEWCOMER);
        let left = NEWCOMER.checked_sub(info.age()).filter(|_| !is_late)?;
        now.checked_add(left)
    }

    /// Ends the input of suspended connections at the start of a drain.
    pub(crate) fn end_idle_input(&self) {
        let all: Vec<_> = self.entries().values().cloned().collect();
        for entry in all {
            // The lock is held until the shutdown is done, so that no handler is called again in
            // between. Received bytes are served: they end the suspension, and no further
            // suspension follows.
            let paused = lock(&entry.paused);
            if let Some(socket) = entry.socket()
                && *paused == Suspension::Idle
                && !socket.has_input()
                && self.newcomer_until(entry.info()).is_none()
            {
                let _ = socket.shutdown(Shutdown::Read);
            }
        }
    }

    /// Requests a wake-up when the next request ends. Check [`active`](Self::active) once more
    /// after this call and before waiting.
    pub(crate) fn request_wakeup(&self) {
        self.wakeup_requested.store(true, Ordering::SeqCst);
    }

    fn notify_ended(&self) {
        if self.wakeup_requested.swap(false, Ordering::SeqCst) {
            self.lifecycle.wake();
        }
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.sink.emit(event);
    }

    pub(crate) fn hook_failed(&self, hook: &'static str, cause: HandlerErrorKind) {
        self.emit(&Event::HookFailed {
            hook,
            cause: &cause,
        });
        drop_catching_panic(cause);
    }

    /// Passes a handler's error to the application's hook, or logs it.
    pub(crate) fn handle_error(&self, info: &RequestInfo, failure: &HandlerError) {
        self.emit(&Event::Failed(info, failure));
        match &self.handle_error {
            Some(hook) => {
                if let Err(cause) = call_user_code(|| hook(info, failure)) {
                    self.hook_failed("handle_error", cause);
                }
            }
            // The error is the application's type, so formatting it runs application code.
            None => drop(catch_panic(|| log_failure(info, failure))),
        }
    }

    /// Counts and reports the end of a request.
    pub(crate) fn ended(&self, info: &RequestInfo, ended: &RequestSummary) {
        if self.lifecycle.is_draining() {
            let was_cut = ended.reason == EndReason::Cancelled;
            self.ended_in_drain[usize::from(was_cut)].fetch_add(1, Ordering::Relaxed);
        }
        self.emit(&Event::Ended(info, ended));
    }

    /// Returns how many requests have ended by themselves, and how many were cancelled, since a
    /// drain was requested.
    pub(crate) fn ended_in_drain(&self) -> (u64, u64) {
        let [finished, cut] = &self.ended_in_drain;
        (
            finished.load(Ordering::Relaxed),
            cut.load(Ordering::Relaxed),
        )
    }

    /// Counts and reports an accepted request that ends without a handler.
    pub(crate) fn rejected(&self, info: &RequestInfo, rejection: &Rejection) {
        if self.lifecycle.is_draining() {
            self.ended_in_drain[0].fetch_add(1, Ordering::Relaxed);
        }
        self.emit(&Event::Rejected(info, rejection));
    }

    /// Stores the progress of a drain.
    pub(crate) fn drain_goes_on(&self, report: DrainReport) {
        *lock(&self.drained) = (report, false);
    }

    pub(crate) fn drained(&self, report: DrainReport) {
        self.emit(&Event::DrainEnded(&report));
        *lock(&self.drained) = (report, true);
    }

    /// Emits `StateChanged` if the state differs from the last one reported. Only the serving
    /// thread calls this, or the thread that drops the server.
    pub(crate) fn report_state(&self) {
        let to = self.lifecycle.state();
        let from = std::mem::replace(&mut *lock(&self.last_reported), to);
        if from != to {
            self.emit(&Event::StateChanged { from, to });
        }
    }

    /// Returns the bytes received and sent by requests that have not ended.
    #[cfg(feature = "metrics")]
    pub(crate) fn active_bytes(&self) -> (u64, u64) {
        self.entries()
            .values()
            .filter(|entry| !entry.ended.load(Ordering::SeqCst))
            .filter_map(|entry| Some(entry.socket()?.byte_counts()))
            .fold((0, 0), |(received, sent), (r, s)| (received + r, sent + s))
    }

    /// Detaches a forked child's copy. From then on only a command to the parent wakes the parent,
    /// and the counters stay as they were at the fork.
    pub(crate) fn abandon_in_child(&self) {
        self.wakeup_requested.store(false, Ordering::SeqCst);
        self.is_copy.store(true, Ordering::SeqCst);
    }

    pub(crate) fn cancel_all(&self) {
        // The entries are collected first, because a handler must not be woken under the table's
        // lock.
        let all: Vec<_> = self.entries().values().cloned().collect();
        for entry in all {
            entry.cancel();
        }
    }

    /// Cancels requests that hold the exhausted resource and use nothing, because a client waits
    /// for it. Returns the number of cancelled requests and the time to try again if that does not
    /// help. The time is `None` if displacement is off.
    pub(crate) fn make_room(
        &self,
        holding: Holding,
        limit: &'static str,
    ) -> (usize, Option<Instant>) {
        // The entries are collected first, as in `cancel_all`.
        let mut all = Vec::new();
        let (found, next) = self.displacer.search(|| {
            all.extend(self.entries().values().cloned());
            all.iter().filter_map(|entry| entry.held(holding)).collect()
        });
        if found.is_first {
            self.displacement_begins(limit);
        }
        // The table is in the order of the numbers.
        let victims = found.victims.iter().filter(|id| {
            let index = all.binary_search_by_key(*id, |entry| entry.accepted.id);
            index.is_ok_and(|index| all[index].displace())
        });
        (victims.count(), next)
    }

    /// Counts a request that was cancelled or rejected because another request needs its resource.
    pub(crate) fn count_displaced(&self, limit: &'static str) {
        if self.displacer.count_one() {
            self.displacement_begins(limit);
        }
    }

    fn displacement_begins(&self, limit: &'static str) {
        let live = self.active();
        self.emit(&Event::DisplacementStarted { limit, live });
    }

    /// Returns true if requests may be cancelled to make room for others.
    pub(crate) fn displaces(&self) -> bool {
        !self.displacer.is_off()
    }

    /// Reports the end of a shortage if it is over. Returns the time of the next check.
    pub(crate) fn settle_displacement(&self, now: Instant) -> Option<Instant> {
        match self.displacer.settle(now) {
            Ok((displaced, lasted)) => {
                self.emit(&Event::DisplacementEnded { displaced, lasted });
                None
            }
            Err(again) => again,
        }
    }

    /// Counts active requests for their peers. Before a limit was set, they may not have been
    /// counted.
    fn count_peers(&self) {
        let all: Vec<_> = self.entries().values().cloned().collect();
        for entry in all {
            let peer = &entry.info().peer;
            if self.preamble.names_client_of(peer) {
                // The peer is a proxy that forwards for a client, or has not named the client yet.
                continue;
            }
            let mut permit = lock(&entry.permit);
            if permit.is_none() {
                *permit = self.admission.count_live(peer);
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<RequestId, Arc<Entry>>> {
        lock(&self.table)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No application code runs while one of these mutexes is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_failure(info: &RequestInfo, failure: &HandlerError) {
    let (id, peer, phase) = (info.id, &info.peer, failure.phase());
    let kind = failure.error().and_then(io_kind);
    if kind == Some(io::ErrorKind::TimedOut) {
        tracing::info!(%id, %peer, %phase, error = format_args!("{:#}", failure.cause()), "request timed out");
    } else if failure.error().is_some_and(AmplificationExceeded::is_in) {
        // The limit works as intended, and an attacker decides how often. A counter counts it.
        tracing::debug!(%id, %peer, %phase, error = format_args!("{:#}", failure.cause()), "reply withheld");
    } else if kind == Some(io::ErrorKind::InvalidData) {
        // The peer's input is invalid, and an operator cannot do anything about it.
        tracing::warn!(%id, %peer, %phase, error = format_args!("{:#}", failure.cause()), "request failed");
    } else {
        tracing::error!(%id, %peer, %phase, error = format_args!("{:#}", failure.cause()), "request failed");
    }
}

/// The kind of suspension in which a request waits for its peer without occupying a pool thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspension {
    None,
    /// The request is suspended in its preamble, before the handler. A drain lets it continue.
    InPreamble,
    /// The request is suspended between two calls of its handler. A drain may end it without loss.
    Idle,
}

/// One active request in the table.
struct Entry {
    accepted: RequestInfo,
    /// The client that a proxy has named. Boxed, because most connections have no proxy, and many
    /// are idle.
    #[cfg(feature = "proxy")]
    proxied: OnceLock<Box<RequestInfo>>,
    /// Weak, because inspecting a connection must not keep it open.
    socket: Option<Weak<Socket>>,
    /// The child that serves the request, under the forking model.
    child: OnceLock<OwnedFd>,
    /// Whether the request is suspended.
    paused: Mutex<Suspension>,
    /// The request's share of the limits of its peer, once a limit is set.
    permit: Mutex<Option<PeerPermit>>,
    /// The request has ended, and its bytes are about to be added to the totals.
    ended: AtomicBool,
    /// The request waits for a slot.
    queued: AtomicBool,
}

/// The name of the request in reports.
#[cfg(feature = "green")]
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RequestInfo { id, peer, .. } = self.info();
        write!(f, "request {id} of {peer}")
    }
}

impl Entry {
    fn info(&self) -> &RequestInfo {
        #[cfg(feature = "proxy")]
        if let Some(proxied) = self.proxied.get() {
            return proxied;
        }
        &self.accepted
    }

    /// Returns the socket, unless it is closed or the request has none.
    fn socket(&self) -> Option<Arc<Socket>> {
        self.socket.as_ref()?.upgrade()
    }

    /// Returns the facts about a request that holds the resource that others need. Returns `None`
    /// for a request that waits for a slot itself, because it holds nothing.
    fn held(&self, holding: Holding) -> Option<Held> {
        if self.queued.load(Ordering::Relaxed) {
            return None;
        }
        if holding == Holding::Thread && *lock(&self.paused) != Suspension::None {
            return None;
        }
        let socket = self.socket().filter(|socket| !socket.is_cancelled());
        let info = self.info();
        let mut held = Held {
            id: self.accepted.id,
            peer: PeerKey::of_peer(info.peer()),
            age: info.age(),
            input: socket.as_ref().and_then(|socket| socket.input().read()),
            is_sending: socket.as_ref().is_some_and(|s| s.output().read().is_some()),
            moved: 0,
        };
        if held.may_be_slow() {
            held.moved = socket.map_or(0, |socket| socket.confirmed());
        }
        Some(held)
    }

    /// Cancels the request, unless bytes have arrived since the search: those are served.
    fn displace(&self) -> bool {
        self.socket()
            .filter(|socket| !socket.is_being_read())
            .inspect(|socket| socket.cancel(CancelReason::Displaced))
            .is_some()
    }

    fn cancel(&self) -> bool {
        if let Some(child) = self.child.get() {
            return pidfd_send_signal(child, CANCEL_SIGNAL).is_ok();
        }
        self.socket()
            .inspect(|socket| socket.cancel(CancelReason::ByServer))
            .is_some()
    }
}

/// The entry of a request in the table, removed when the guard is dropped.
pub struct RequestGuard {
    entry: Arc<Entry>,
    shared: Arc<Shared>,
}

impl RequestGuard {
    pub(crate) fn enter(
        shared: &Arc<Shared>,
        id: RequestId,
        peer: Address,
        listener: Arc<Address>,
        socket: Option<Weak<Socket>>,
        permit: Option<PeerPermit>,
    ) -> Self {
        let entry = Arc::new(Entry {
            accepted: RequestInfo::new(id, peer, listener),
            #[cfg(feature = "proxy")]
            proxied: OnceLock::new(),
            socket,
            child: OnceLock::new(),
            paused: Mutex::new(Suspension::None),
            permit: Mutex::new(permit),
            ended: AtomicBool::new(false),
            queued: AtomicBool::new(false),
        });
        shared.active.fetch_add(1, Ordering::SeqCst);
        shared.entries().insert(id, entry.clone());
        Self {
            entry,
            shared: shared.clone(),
        }
    }

    pub(crate) fn info(&self) -> &RequestInfo {
        self.entry.info()
    }

    /// Returns the label of the coroutine that serves the request.
    #[cfg(feature = "green")]
    pub(crate) fn label(&self) -> Arc<RequestLabel> {
        self.entry.clone()
    }

    /// Stores the client that a proxy's header names.
    #[cfg(feature = "proxy")]
    pub(crate) fn set_proxied(&self, client: &Address, proxy: &Address) {
        let mut info = self.entry.accepted.clone();
        info.peer = client.clone();
        info.proxy = Some(Arc::new(proxy.clone()));
        let _ = self.entry.proxied.set(Box::new(info));
    }

    /// Counts the request for its client from now on.
    #[cfg(feature = "proxy")]
    pub(crate) fn set_permit(&self, permit: Option<PeerPermit>) {
        *lock(&self.entry.permit) = permit;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Marks the request as ended.
    pub(crate) fn set_ended(&self) {
        self.entry.ended.store(true, Ordering::SeqCst);
    }

    /// Records that the wait for a slot begins or ends.
    pub(crate) fn set_queued(&self, queued: bool) {
        if self.entry.queued.swap(queued, Ordering::Relaxed) == queued {
            return;
        }
        let count = &self.shared.queued;
        if queued {
            count.fetch_add(1, Ordering::Relaxed);
        } else {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Records that a suspension begins or ends.
    pub(crate) fn set_suspension(&self, paused: Suspension) {
        let before = std::mem::replace(&mut *lock(&self.entry.paused), paused);
        let count = |count: &AtomicUsize, was: bool, is: bool| match (was, is) {
            (false, true) => drop(count.fetch_add(1, Ordering::SeqCst)),
            (true, false) => drop(count.fetch_sub(1, Ordering::SeqCst)),
            _ => {}
        };
        let (was, is) = (before == Suspension::Idle, paused == Suspension::Idle);
        count(&self.shared.paused, was, is);
        let (was, is) = (before != Suspension::None, paused != Suspension::None);
        count(&self.shared.waiting, was, is);
        if is && !was {
            // A pool thread may be free for another request.
            self.shared.notify_ended();
        }
    }

    /// Records that a child serves the request, so that it is cancelled by a signal to the child.
    pub(crate) fn served_by(&self, child: OwnedFd) {
        let _ = self.entry.child.set(child);
    }

    /// Returns the descriptor of the child that serves the request.
    pub(crate) fn child(&self) -> Option<&OwnedFd> {
        self.entry.child.get()
    }
}

impl fmt::Debug for RequestGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequestGuard").field(self.info()).finish()
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.shared.entries().remove(&self.entry.accepted.id);
        // The permit is released now, even if another thread still holds the entry.
        drop(lock(&self.entry.permit).take());
        if self.shared.is_copy.load(Ordering::SeqCst) {
            return;
        }
        self.set_suspension(Suspension::None);
        self.set_queued(false);
        self.shared.active.fetch_sub(1, Ordering::SeqCst);
        self.shared.notify_ended();
    }
}

/// A handle on a server, for use in any thread, handler, hook or signal handler. Cheap to clone.
///
/// ```
/// use socketserver::{Connection, ThreadingTcpServer, handler_fn};
///
/// let handler = handler_fn(|_: &mut Connection| Ok(()));
/// let mut server = ThreadingTcpServer::bind("127.0.0.1:0", handler)?;
/// let handle = server.handle();
/// let serving = std::thread::spawn(move || server.serve_forever());
/// handle.shutdown();
/// assert!(handle.wait(Some(std::time::Duration::from_secs(5))));
/// serving.join().unwrap()?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
#[derive(Clone)]
pub struct ServerHandle(pub(crate) Arc<Shared>);

impl ServerHandle {
    /// Requests that the server stop serving: `serve_forever` returns. The listener stays open,
    /// requests on other threads continue, and `serve_forever` may be called again.
    ///
    /// Never blocks; use [`wait`](Self::wait) to wait. Before serving has begun, this call makes
    /// `serve_forever` return at once; after serving has ended, it does nothing. It does not
    /// allocate and takes no lock, so a signal handler may call it. Called in a forked child, it
    /// stops the parent.
    pub fn shutdown(&self) {
        self.0.lifecycle.stop();
    }

    /// Requests that the server close gracefully within `timeout`.
    ///
    /// The server serves the connections in the backlog, closes the listener, and lets active
    /// requests end. At the deadline it cancels the remaining requests, and rejects clients that
    /// are still in the backlog. Then `serve_forever` returns, and cannot serve again.
    /// [`drain_report`](Self::drain_report) returns the counts. The earliest of several deadlines
    /// applies: `drain(Duration::ZERO)` ends a running drain at once.
    ///
    /// Never blocks, and is as safe in a signal handler as [`shutdown`](Self::shutdown). Called in
    /// a forked child, it drains the parent within 30 s, and ignores `timeout`.
    pub fn drain(&self, timeout: Duration) {
        self.0.lifecycle.drain(timeout);
    }

    /// Waits until the server has stopped serving. Returns true if it has, and false if `timeout`
    /// passed first. If a handler that runs on the serving thread calls this method, the call times
    /// out.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.0.lifecycle.wait(timeout)
    }

    /// Returns true if `serve_forever` or `handle_request` is running.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.0.lifecycle.is_serving()
    }

    /// Returns true if a drain was requested. A handler may check this to end earlier. In a forked
    /// child it reports a drain of the parent.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.lifecycle.is_draining()
    }

    /// Returns true if the server is a [lame duck](Self::set_lame): it serves, but its clients
    /// should connect elsewhere. A handler may check this, and ask its client to reconnect. In a
    /// forked child it reports the parent's setting.
    #[must_use]
    pub fn is_lame(&self) -> bool {
        self.0.lifecycle.is_lame()
    }

    /// Returns the state of the server. In a forked child this is a copy: the state of the parent
    /// at the fork.
    #[must_use]
    pub fn state(&self) -> ServerState {
        self.0.lifecycle.state()
    }

    /// Returns true if new clients should connect; see [`ServerState::is_ready`]. A server at its
    /// limit is still ready: [`OverloadPolicy`](crate::OverloadPolicy) decides about further
    /// clients.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state().is_ready()
    }

    /// Makes the server a lame duck, or ready again. A lame duck still accepts and serves, but is
    /// [not ready](Self::is_ready), so that a load balancer sends it no new clients.
    ///
    /// Never blocks, and is as safe in a signal handler as [`shutdown`](Self::shutdown). Called in
    /// a forked child, `true` makes the parent a lame duck, and `false` does nothing, because one
    /// child does not know what the other children have found.
    pub fn set_lame(&self, lame: bool) {
        self.0.lifecycle.set_lame(lame);
    }

    /// Returns totals since the server was created.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.sink.counters()
    }

    /// Returns the number of requests that have been accepted and have not ended.
    #[must_use]
    pub fn active_count(&self) -> usize {
        self.0.active()
    }

    /// Returns the number of active requests that are suspended between two calls of their
    /// handlers; see
    /// [`Connection::suspend_until_readable`](crate::Connection::suspend_until_readable).
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.0.paused()
    }

    /// Returns the number of active requests that wait for a slot; see
    /// [`OverloadPolicy::Queue`](crate::OverloadPolicy::Queue).
    #[must_use]
    pub fn queued_count(&self) -> usize {
        self.0.queued.load(Ordering::Relaxed)
    }

    /// Returns the number of requests that the server serves at once: the limit of its concurrency
    /// model, or [`Admission::max_active`] if that is less.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit.min(self.0.admission.max_active())
    }

    /// Returns the active requests, oldest first.
    #[must_use]
    pub fn active(&self) -> Vec<ActiveRequest> {
        let entries = self.0.entries();
        let look = |entry: &Arc<Entry>| {
            let socket = entry.socket();
            let (received, sent) = socket
                .as_ref()
                .map_or((0, 0), |socket| socket.byte_counts());
            let state = if socket.is_some_and(|socket| socket.is_cancelled()) {
                RequestState::Cancelled
            } else if entry.queued.load(Ordering::Relaxed) {
                RequestState::Queued
            } else if *lock(&entry.paused) == Suspension::Idle {
                RequestState::Waiting
            } else {
                RequestState::Serving
            };
            ActiveRequest {
                info: entry.info().clone(),
                received,
                sent,
                state,
            }
        };
        entries.values().map(look).collect()
    }

    /// Cancels one connection: its handler's reads and writes fail with
    /// [`io::ErrorKind::ConnectionAborted`]. A child that serves it receives the signal
    /// [`Forking::CANCEL_SIGNAL`](crate::Forking::CANCEL_SIGNAL). Returns true if there was such a connection.
    #[must_use = "the request may have ended meanwhile"]
    pub fn cancel(&self, id: RequestId) -> bool {
        let entry = self.0.entries().get(&id).cloned();
        entry.is_some_and(|entry| entry.cancel())
    }

    /// Replaces the admission rules, from the next request on. Active requests continue, and count
    /// towards the limits of their peers.
    pub fn set_admission(&self, admission: Admission) {
        self.0.admission.set(admission);
        self.0.count_peers();
        // The accept loop may wait for a time that has changed with the rules.
        self.0.lifecycle.wake();
    }

    /// Returns the current admission rules.
    #[must_use]
    pub fn admission(&self) -> Admission {
        Admission::clone(&self.0.admission.limits())
    }

    /// Replaces the time limits that requests start with, from the next request on.
    ///
    /// Options that are already set on a listener stay: the user timeout of TCP and, for datagrams,
    /// the send timeout.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::InvalidInput`] if a limit is zero.
    pub fn set_timeouts(&self, timeouts: Timeouts) -> io::Result<()> {
        if timeouts.zero().is_some() {
            nonzero(Some(Duration::ZERO))?;
        }
        *lock(&self.0.timeouts) = Arc::new(timeouts);
        Ok(())
    }

    /// Returns the time limits that requests start with now.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        *self.0.timeouts()
    }

    /// Returns the result of the drain, once it is over.
    #[must_use]
    pub fn drain_report(&self) -> Option<DrainReport> {
        let (report, is_over) = *lock(&self.0.drained);
        is_over.then_some(report)
    }

    /// Returns the progress or the result of the drain, or `None` if no drain was requested.
    #[must_use]
    pub fn drain_progress(&self) -> Option<DrainReport> {
        let since = self.0.lifecycle.draining_since()?;
        let (mut report, is_over) = *lock(&self.0.drained);
        if !is_over {
            report.elapsed = since.elapsed();
            if self.state() != ServerState::Terminating {
                (report.finished, report.cancelled) = self.0.ended_in_drain();
            }
        }
        Some(report)
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle")
            .field("serving", &self.is_serving())
            .field("live", &self.active_count())
            .finish_non_exhaustive()
    }
}
