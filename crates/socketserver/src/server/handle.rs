//! The handle on a running server: stop it, wait for it, look at it.

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
use crate::concurrency::CUT;
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
    /// The number as such.
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

/// What is known of a request besides its bytes.
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

    /// Its number.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Who sent it: the client, once a trusted proxy (`Builder::proxy_protocol`) has named it.
    #[must_use]
    pub fn peer(&self) -> &Address {
        &self.peer
    }

    /// The proxy that it came by, once that has sent its header.
    #[cfg(feature = "proxy")]
    #[must_use]
    pub fn proxy(&self) -> Option<&Address> {
        self.proxy.as_deref()
    }

    /// The address of the listener that it came in by.
    #[must_use]
    pub fn listener(&self) -> &Address {
        &self.listener
    }

    /// How long ago it was accepted.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.accepted.elapsed()
    }
}

/// A request that is being served right now; see [`ServerHandle::live`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ActiveRequest {
    /// Who it is.
    pub info: RequestInfo,
    /// Bytes received so far. Zero where a child process counts them.
    pub received: u64,
    /// Bytes sent so far. Zero where a child process counts them.
    pub sent: u64,
    /// What it is doing.
    pub state: RequestState,
}

/// What a live request is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestState {
    /// It waits until there is room for it: [`OverloadPolicy::Queue`](crate::OverloadPolicy::Queue).
    Queued,
    /// It is being served, or is about to be.
    Serving,
    /// Its handler [keeps it alive](crate::Connection::suspend_until_readable), and is called again when there
    /// is more to read.
    Waiting,
    /// It was cut, and its handler has not ended yet.
    Cancelled,
}

impl fmt::Display for RequestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // With the padding that is asked for.
        f.pad(match self {
            Self::Queued => "queued",
            Self::Serving => "serving",
            Self::Waiting => "waiting",
            Self::Cancelled => "cut",
        })
    }
}

/// What a drain did; see [`ServerHandle::drain`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Requests that waited in the backlog when the drain began and were accepted.
    pub queued: u64,
    /// Requests that came to their own end during the drain.
    pub finished: u64,
    /// Requests that were accepted only to be closed, as the time was over.
    pub refused: u64,
    /// Requests that were cut at the deadline.
    pub cancelled: u64,
    /// Of those: handlers that had not ended a second later, and were left behind.
    pub abandoned: u64,
    /// How long it took.
    pub elapsed: Duration,
}

pub(crate) type HandleError = Box<dyn Fn(&RequestInfo, &HandlerError) -> Result<()> + Send + Sync>;

/// What a server shares with its controllers and its requests.
pub(crate) struct Shared {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) sink: EventSink,
    handle_error: Option<HandleError>,
    table: Mutex<BTreeMap<RequestId, Arc<Entry>>>,
    active: AtomicUsize,
    /// Of those: between two calls of their handlers.
    paused: AtomicUsize,
    /// How many wait for their peers, those included that have no handler yet.
    waiting: AtomicUsize,
    /// Of those: waiting for room.
    queued: AtomicUsize,
    next_id: AtomicU64,
    /// The loop waits for a request to end, and wants to be woken up by the next one that does.
    wakeup_requested: AtomicBool,
    /// This is a child's copy: what the child lets go of was not what the parent did.
    is_copy: AtomicBool,
    /// Requests that ended since a drain was asked for: by themselves, and cut.
    ended_in_drain: [AtomicU64; 2],
    /// What a drain has done so far, and whether that is all.
    drained: Mutex<(DrainReport, bool)>,
    /// The state that was told last.
    last_reported: Mutex<ServerState>,
    /// How many requests the model serves at once.
    limit: usize,
    displacer: Displacer,
    pub(crate) admission: Arc<AdmissionControl>,
    pub(crate) preamble: PreambleConfig,
    timeouts: Mutex<Arc<Timeouts>>,
}

/// How long a client that has connected just before a drain has for its first request.
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

    /// The limits on waiting that new requests start with.
    pub(crate) fn timeouts(&self) -> Arc<Timeouts> {
        lock(&self.timeouts).clone()
    }

    pub(crate) fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// How many requests have been accepted and have not ended.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }

    /// How many of them wait between two calls of their handlers.
    pub(crate) fn paused(&self) -> usize {
        self.paused.load(Ordering::SeqCst)
    }

    /// How many wait for their peers in a pause of any kind.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Until when a drain leaves a client that has just come alone: its first request may be on the
    /// way. `None` if its input may be ended at once.
    pub(crate) fn newcomer_until(&self, info: &RequestInfo) -> Option<Instant> {
        let now = Instant::now();
        // In a child it is not known since when: only the client's own time counts, and it looks again.
        let since = self.lifecycle.draining_since();
        let is_late = since.is_some_and(|since| now >= since + NEWCOMER);
        let left = NEWCOMER.checked_sub(info.age()).filter(|_| !is_late)?;
        now.checked_add(left)
    }

    /// A drain has begun: those between two calls find the end of their input.
    pub(crate) fn end_idle_input(&self) {
        let all: Vec<_> = self.entries().values().cloned().collect();
        for entry in all {
            // Held until it is done, so that no handler is called again in between. What has come
            // in is served: it ends the pause by itself, and there is no further one.
            let paused = lock(&entry.paused);
            if let Some(socket) = entry.socket.as_ref().and_then(Weak::upgrade)
                && *paused == Suspension::Idle
                && !socket.has_input()
                && self.newcomer_until(entry.info()).is_none()
            {
                let _ = socket.shutdown(Shutdown::Read);
            }
        }
    }

    /// Asks for a wake-up when the next request ends. Look at [`live`](Self::live) once more after
    /// this and before waiting.
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

    /// Hands a handler's failure to the application, or logs it.
    pub(crate) fn handle_error(&self, info: &RequestInfo, failure: &HandlerError) {
        self.emit(&Event::Failed(info, failure));
        match &self.handle_error {
            Some(hook) => {
                if let Err(cause) = call_user_code(|| hook(info, failure)) {
                    self.hook_failed("handle_error", cause);
                }
            }
            // An error is the application's: to format it is to run its code.
            None => drop(catch_panic(|| log_failure(info, failure))),
        }
    }

    /// A request is over.
    pub(crate) fn ended(&self, info: &RequestInfo, ended: &RequestSummary) {
        if self.lifecycle.is_draining() {
            let was_cut = ended.reason == EndReason::Cancelled;
            self.ended_in_drain[usize::from(was_cut)].fetch_add(1, Ordering::Relaxed);
        }
        self.emit(&Event::Ended(info, ended));
    }

    /// How many requests have ended by themselves, and how many were cut, since a drain was asked
    /// for.
    pub(crate) fn ended_in_drain(&self) -> (u64, u64) {
        let [finished, cut] = &self.ended_in_drain;
        (
            finished.load(Ordering::Relaxed),
            cut.load(Ordering::Relaxed),
        )
    }

    /// A request that was taken on is over without a handler.
    pub(crate) fn rejected(&self, info: &RequestInfo, rejection: &Rejection) {
        if self.lifecycle.is_draining() {
            self.ended_in_drain[0].fetch_add(1, Ordering::Relaxed);
        }
        self.emit(&Event::Rejected(info, rejection));
    }

    /// A drain has come so far.
    pub(crate) fn drain_goes_on(&self, report: DrainReport) {
        *lock(&self.drained) = (report, false);
    }

    pub(crate) fn drained(&self, report: DrainReport) {
        self.emit(&Event::DrainEnded(&report));
        *lock(&self.drained) = (report, true);
    }

    /// Tells of the state, if it is another one than was told last. Only who serves tells it, or who
    /// drops the server.
    pub(crate) fn report_state(&self) {
        let to = self.lifecycle.state();
        let from = std::mem::replace(&mut *lock(&self.last_reported), to);
        if from != to {
            self.emit(&Event::StateChanged { from, to });
        }
    }

    /// Bytes received and sent by requests that have not ended.
    #[cfg(feature = "metrics")]
    pub(crate) fn active_bytes(&self) -> (u64, u64) {
        self.entries()
            .values()
            .filter(|entry| !entry.ended.load(Ordering::SeqCst))
            .filter_map(|entry| Some(entry.socket.as_ref()?.upgrade()?.byte_counts()))
            .fold((0, 0), |(received, sent), (r, s)| (received + r, sent + s))
    }

    /// In a forked child: from now on nothing here wakes up the parent but a command to it, and its
    /// figures stay as they were when it forked.
    pub(crate) fn abandon_in_child(&self) {
        self.wakeup_requested.store(false, Ordering::SeqCst);
        self.is_copy.store(true, Ordering::SeqCst);
    }

    pub(crate) fn cancel_all(&self) {
        // Collected first: waking a handler up must not happen under the table's lock.
        let all: Vec<_> = self.entries().values().cloned().collect();
        for entry in all {
            entry.cancel();
        }
    }

    /// A client waits for what is short: cuts requests that have it and use nothing. Returns how
    /// many, and when to ask again if that does not help; never, if nothing is ever cut.
    pub(crate) fn make_room(
        &self,
        holding: Holding,
        limit: &'static str,
    ) -> (usize, Option<Instant>) {
        // Collected first, as in `cancel_all`.
        let mut all = Vec::new();
        let (found, next) = self.displacer.search(|| {
            all.extend(self.entries().values().cloned());
            all.iter().filter_map(|entry| entry.held(holding)).collect()
        });
        if found.is_first {
            self.displacement_begins(limit);
        }
        let victims = all
            .iter()
            .filter(|it| found.victims.contains(&it.accepted.id));
        (victims.filter(|victim| victim.displace()).count(), next)
    }

    /// A request was cut, or is refused, as another one needs what it has.
    pub(crate) fn count_displaced(&self, limit: &'static str) {
        if self.displacer.count_one() {
            self.displacement_begins(limit);
        }
    }

    fn displacement_begins(&self, limit: &'static str) {
        let live = self.active();
        self.emit(&Event::DisplacementStarted { limit, live });
    }

    /// Whether requests may be cut for others.
    pub(crate) fn displaces(&self) -> bool {
        !self.displacer.is_off()
    }

    /// Tells that places are not short any more, if that is so. Returns when to look again.
    pub(crate) fn settle_displacement(&self, now: Instant) -> Option<Instant> {
        match self.displacer.settle(now) {
            Ok((displaced, lasted)) => {
                self.emit(&Event::DisplacementEnded { displaced, lasted });
                None
            }
            Err(again) => again,
        }
    }

    /// Until now nobody may have counted.
    fn count_peers(&self) {
        let all: Vec<_> = self.entries().values().cloned().collect();
        for entry in all {
            let peer = &entry.info().peer;
            if self.preamble.names_client_of(peer) {
                // Somebody's proxy, or one that has yet to say whose.
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
    // No application code runs while one of these is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_failure(info: &RequestInfo, failure: &HandlerError) {
    let (id, peer, phase) = (info.id, &info.peer, failure.phase());
    let kind = failure.error().and_then(io_kind);
    if kind == Some(io::ErrorKind::TimedOut) {
        tracing::info!(%id, %peer, %phase, error = format_args!("{:#}", failure.cause()), "request timed out");
    } else if failure.error().is_some_and(AmplificationExceeded::is_in) {
        // The limit does what it is for, and whoever forges sources decides how often. It is counted.
        tracing::debug!(%id, %peer, %phase, error = format_args!("{:#}", failure.cause()), "reply withheld");
    } else if kind == Some(io::ErrorKind::InvalidData) {
        // What the peer has sent is at fault, and no operator can do anything about it.
        tracing::warn!(%id, %peer, %phase, error = format_args!("{:#}", failure.cause()), "request failed");
    } else {
        tracing::error!(%id, %peer, %phase, error = format_args!("{:#}", failure.cause()), "request failed");
    }
}

/// Whether a request waits for its peer, on no thread of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspension {
    None,
    /// In the middle of what comes before the handler: a drain lets it go on.
    InPreamble,
    /// Nothing is lost if a drain ends it.
    Idle,
}

/// One live request, as the table knows it.
struct Entry {
    accepted: RequestInfo,
    /// What a proxy has told since. Boxed: most connections have no proxy, and many are idle.
    #[cfg(feature = "proxy")]
    proxied: OnceLock<Box<RequestInfo>>,
    /// Weak: looking at a connection must not keep it open.
    socket: Option<Weak<Socket>>,
    /// The child that serves it, under the forking model.
    child: OnceLock<OwnedFd>,
    /// Its handler has returned and is to be called again.
    paused: Mutex<Suspension>,
    /// Its share of what its peer may have, once that is limited.
    permit: Mutex<Option<PeerPermit>>,
    /// It is over, and its bytes are about to be counted among those of requests that ended.
    ended: AtomicBool,
    /// There is no room for it yet.
    queued: AtomicBool,
}

/// As reports name it.
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

    /// What is known of it where it holds what others need. One that was cut already, or waits for
    /// room itself, gives nothing.
    fn held(&self, holding: Holding) -> Option<Held> {
        if self.queued.load(Ordering::Relaxed) {
            return None;
        }
        if holding == Holding::Thread && *lock(&self.paused) != Suspension::None {
            return None;
        }
        let socket = self.socket.as_ref().and_then(Weak::upgrade);
        let socket = socket.filter(|socket| !socket.is_cancelled());
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

    /// Cuts it, unless something has come in meanwhile: that is served.
    fn displace(&self) -> bool {
        let socket = self.socket.as_ref().and_then(Weak::upgrade);
        let socket = socket.filter(|socket| !socket.is_being_read());
        socket
            .inspect(|socket| socket.cancel(CancelReason::Displaced))
            .is_some()
    }

    fn cancel(&self) -> bool {
        if let Some(child) = self.child.get() {
            return pidfd_send_signal(child, CUT).is_ok();
        }
        let socket = self.socket.as_ref().and_then(Weak::upgrade);
        socket
            .inspect(|socket| socket.cancel(CancelReason::ByServer))
            .is_some()
    }
}

/// A request's place in the table, given up when it is dropped.
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

    /// What whoever serves it is called after.
    #[cfg(feature = "green")]
    pub(crate) fn label(&self) -> Arc<RequestLabel> {
        self.entry.clone()
    }

    /// A proxy has said who the client is.
    #[cfg(feature = "proxy")]
    pub(crate) fn set_proxied(&self, client: &Address, proxy: &Address) {
        let mut info = self.entry.accepted.clone();
        info.peer = client.clone();
        info.proxy = Some(Arc::new(proxy.clone()));
        let _ = self.entry.proxied.set(Box::new(info));
    }

    /// From now on the request is counted for its client.
    #[cfg(feature = "proxy")]
    pub(crate) fn set_ticket(&self, permit: Option<PeerPermit>) {
        *lock(&self.entry.permit) = permit;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The request is over.
    pub(crate) fn set_ended(&self) {
        self.entry.ended.store(true, Ordering::SeqCst);
    }

    /// Its wait for room begins or ends.
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

    /// A pause begins or ends.
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
            // There may be room for another one.
            self.shared.notify_ended();
        }
    }

    /// From now on the request is served by a child, and cancelled by a signal to it.
    pub(crate) fn served_by(&self, child: OwnedFd) {
        let _ = self.entry.child.set(child);
    }

    /// The descriptor of the child that serves the request.
    pub(crate) fn child(&self) -> Option<&OwnedFd> {
        self.entry.child.get()
    }
}

impl fmt::Debug for RequestGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Record").field(self.info()).finish()
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.shared.entries().remove(&self.entry.accepted.id);
        // Now, even if somebody looks at the entry at the moment.
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

/// A handle on a server, for any thread, handler, hook or signal handler. Cheap to clone.
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
    /// Asks the server to stop serving: `serve_forever` returns. The listener stays open, requests
    /// on other threads go on, and `serve_forever` may be called again.
    ///
    /// Never blocks; use [`wait`](Self::wait) to wait. Before serving has begun, it makes
    /// `serve_forever` return at once; after serving has ended, it does nothing. It makes no
    /// allocation and takes no lock, so it may be called from a signal handler; called in a forked
    /// child, it stops the parent.
    pub fn shutdown(&self) {
        self.0.lifecycle.stop();
    }

    /// Asks the server to close gracefully, and to be done within `timeout`.
    ///
    /// What waits in the backlog is served, the listener is closed, live requests come to their
    /// end; those that have not when the time is over are cut, and clients still in the backlog
    /// are refused. Then `serve_forever` returns, for good; [`drain_report`](Self::drain_report)
    /// tells what happened. The earliest of several deadlines holds: `drain(Duration::ZERO)`
    /// forces a drain that is under way.
    ///
    /// Never blocks, and is as safe in a signal handler as [`shutdown`](Self::shutdown). Called in
    /// a forked child, it drains the parent within 30 seconds, whatever `timeout` says.
    pub fn drain(&self, timeout: Duration) {
        self.0.lifecycle.drain(timeout);
    }

    /// Waits until the server does not serve, and returns whether that is the case; `false` means
    /// that `timeout` passed first. Called from a handler that the serving thread itself runs, it
    /// can only time out.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.0.lifecycle.wait(timeout)
    }

    /// Whether `serve_forever` or `handle_request` is running.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.0.lifecycle.is_serving()
    }

    /// Whether a drain was asked for. A handler may look, and come to an end earlier; in a forked
    /// child it sees what was asked of the parent.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.lifecycle.is_draining()
    }

    /// Whether the server is [lame](Self::set_lame): its clients should go elsewhere. A handler may
    /// look, and ask its client to; in a forked child it sees what the parent is.
    #[must_use]
    pub fn is_lame(&self) -> bool {
        self.0.lifecycle.is_lame()
    }

    /// What the server is doing. In a forked child it is a copy: what the parent did when it forked.
    #[must_use]
    pub fn state(&self) -> ServerState {
        self.0.lifecycle.state()
    }

    /// Whether new clients should come; see [`ServerState::is_ready`]. Being at a limit does not
    /// count: who comes then is dealt with as [`OverloadPolicy`](crate::OverloadPolicy) says.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state().is_ready()
    }

    /// Makes the server lame, or ready again: lame, it goes on accepting and serving, and is
    /// [not ready](Self::is_ready), so that who distributes clients gives it no more.
    ///
    /// Never blocks, and is as safe in a signal handler as [`shutdown`](Self::shutdown). Called in a
    /// forked child, `true` makes the parent lame, and `false` does nothing: one child does not know
    /// what the others have found.
    pub fn set_lame(&self, lame: bool) {
        self.0.lifecycle.set_lame(lame);
    }

    /// Totals since the server was made.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.sink.counters()
    }

    /// How many requests have been accepted and have not ended.
    #[must_use]
    pub fn active_count(&self) -> usize {
        self.0.active()
    }

    /// How many of them wait between two calls of their handlers; see
    /// [`Connection::suspend_until_readable`](crate::Connection::suspend_until_readable).
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.0.paused()
    }

    /// How many of them wait until there is room for them; see
    /// [`OverloadPolicy::Queue`](crate::OverloadPolicy::Queue).
    #[must_use]
    pub fn queued_count(&self) -> usize {
        self.0.queued.load(Ordering::Relaxed)
    }

    /// How many requests the server serves at once: what its concurrency model allows, or
    /// [`Admission::max_active`] if that is less.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit.min(self.0.admission.max_active())
    }

    /// Those requests, oldest first.
    #[must_use]
    pub fn active(&self) -> Vec<ActiveRequest> {
        let entries = self.0.entries();
        let look = |entry: &Arc<Entry>| {
            let socket = entry.socket.as_ref().and_then(Weak::upgrade);
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

    /// Cuts one connection: its handler's reads and writes fail with
    /// [`io::ErrorKind::ConnectionAborted`]; a child that serves it is sent
    /// [`Forking::CUT`](crate::Forking::CUT). Returns whether there was such a connection.
    #[must_use = "the request may have ended meanwhile"]
    pub fn cancel(&self, id: RequestId) -> bool {
        let entry = self.0.entries().get(&id).cloned();
        entry.is_some_and(|entry| entry.cancel())
    }

    /// Changes who may come in, how many and how fast, from the next request on. Those that are
    /// live stay, and count as their peers'.
    pub fn set_admission(&self, admission: Admission) {
        self.0.admission.set(admission);
        self.0.count_peers();
        // It may wait for a time that is another one now.
        self.0.lifecycle.wake();
    }

    /// Who may come in now.
    #[must_use]
    pub fn admission(&self) -> Admission {
        Admission::clone(&self.0.admission.limits())
    }

    /// Changes the limits on waiting that requests start with, from the next one on.
    ///
    /// What the system was told about a listener stays: the user timeout of TCP, and for datagrams
    /// the send timeout.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a limit of zero.
    pub fn set_timeouts(&self, timeouts: Timeouts) -> io::Result<()> {
        if timeouts.zero().is_some() {
            nonzero(Some(Duration::ZERO))?;
        }
        *lock(&self.0.timeouts) = Arc::new(timeouts);
        Ok(())
    }

    /// The limits on waiting that requests start with now.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        *self.0.timeouts()
    }

    /// What the drain did, once it is over.
    #[must_use]
    pub fn drain_report(&self) -> Option<DrainReport> {
        let (report, is_over) = *lock(&self.0.drained);
        is_over.then_some(report)
    }

    /// What the drain has done so far, or did in the end; `None` as long as none was asked for.
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
