//! Displacement: cancels connections that use nothing, while the server is full and a client waits.
//!
//! Displacement costs nothing while slots are free: then the table of active requests is not
//! searched.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::poller::Poller;
use super::{RequestId, Server};
use crate::admission::{PeerCounts, PeerKey};
use crate::concurrency::{Concurrency, OverloadPolicy};
use crate::transport::Transport;
use crate::waiting::Awaited;
use crate::{Address, Rejection, ServeError};

/// The time that a client has for its first complete message, header or handshake while others wait
/// for a slot. It covers two round trips to any place on Earth, so that a burst of good clients
/// does not displace itself.
const SILENCE: Duration = Duration::from_millis(500);
/// The same limit for clients of an address that holds more than half of all slots, and at least
/// `MANY`.
const SILENCE_OF_MOST: Duration = Duration::from_millis(100);
const MANY: usize = 8;
/// The time that an HTTP connection may be kept alive without a request while others wait.
const BETWEEN_REQUESTS: Duration = Duration::from_secs(1);
/// The same limit for connections of other protocols. This is the default of `Displacement::idle`.
const IDLE: Duration = Duration::from_secs(10);
/// The time over which a transfer is measured. A peer acknowledges data in bursts.
const WINDOW: Duration = Duration::from_secs(1);
/// Measurements of a transfer that are older than this are discarded.
const STALE: Duration = Duration::from_secs(5);
/// A transfer slower than this, in bytes per second, may be cancelled when a shortage begins. The
/// threshold doubles every two seconds.
const SLOW: u64 = 1 << 10;
/// The maximum of the threshold: faster transfers are never cancelled.
const SLOW_AT_MOST: u64 = 16 << 10;
const DOUBLES_EVERY: Duration = Duration::from_secs(2);
/// Each round cancels one of this number of requests.
const SHARE: usize = 8;
/// The maximum number of requests that a round cancels.
const AT_ONCE: usize = 64;
/// The table is searched at most once in this time. Searches take at most a twentieth of the total
/// time.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_TIMES: u32 = 20;
/// The time that a client which would be rejected may wait for a cancelled request to end.
const MADE: Duration = Duration::from_secs(1);
/// The time that a request waits for a pool thread before the pool counts as full.
const BUSY: Duration = Duration::from_millis(20);
/// A shortage ends after this time without one; see `Event::DisplacementEnded`.
const EPISODE: Duration = Duration::from_secs(10);

/// The policy that cancels connections to make room for others while the server is full; see
/// [`Builder::displacement`](crate::Builder::displacement).
///
/// The server is full when a client waits for a thread, a coroutine, a descriptor or an [allowed
/// request](crate::Admission::max_active). Then the server cancels connections that hold a slot and
/// use nothing, in this order:
///
/// 1. connections that have not sent a complete message (a PROXY header, a TLS handshake, an HTTP
///    head, a frame) for 0.5 s, or for 0.1 s if their address holds most of the slots;
/// 2. [idle](Self::idle) connections: the handler waits for the next message, and no byte of it has
///    arrived. This includes the first message if it has no time limit ([`Timeouts::first_byte`]).
///    HTTP connections are idle after 1 s between two requests;
/// 3. slow connections: while the server waits for them, they transfer less than 1 KiB per second.
///    This threshold doubles every two seconds, up to 16 KiB per second.
///
/// Within a group, the oldest connection of the address that holds most slots is cancelled first. A
/// request whose handler is working is never cancelled. Nothing is cancelled while no client waits.
/// A cancelled connection ends with [`EndReason::Displaced`](crate::EndReason::Displaced).
///
/// [`Timeouts::first_byte`]: crate::Timeouts::first_byte
///
/// Under [`Sequential`](crate::Sequential) the server does not see other clients while it serves
/// one.
///
/// ```
/// use socketserver::{Connection, Displacement, ThreadingTcpServer, handler_fn};
/// use std::time::Duration;
///
/// let server = ThreadingTcpServer::builder()
///     .displacement(Displacement::new().idle(Duration::from_secs(60)))
///     .bind("127.0.0.1:0", handler_fn(|_: &mut Connection| Ok(())))?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Displacement {
    is_on: bool,
    pub(crate) idle: Duration,
}

impl Default for Displacement {
    fn default() -> Self {
        Self {
            is_on: true,
            idle: IDLE,
        }
    }
}

impl Displacement {
    /// Returns the default policy.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a policy under which no connection is cancelled for another.
    #[must_use]
    pub fn off() -> Self {
        Self {
            is_on: false,
            ..Self::default()
        }
    }

    /// Sets how long a connection must wait for a message before it is idle. Defaults to 10 s.
    #[must_use]
    pub fn idle(mut self, time: Duration) -> Self {
        self.idle = time;
        self
    }
}

/// The requests that hold the exhausted resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holding {
    /// All active requests, for example because each holds a descriptor.
    Slot,
    /// Requests that are not suspended, because each holds a pool thread.
    Thread,
}

/// The facts about one request that holds the exhausted resource.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) id: RequestId,
    /// `None` for peers without an IP address. They count as one peer.
    pub(super) peer: Option<PeerKey>,
    pub(super) age: Duration,
    /// The input that the server awaits from the peer, and the time since the wait began.
    pub(super) input: Option<(Awaited, Duration)>,
    /// The request waits for send buffer space.
    pub(super) is_sending: bool,
    /// Bytes moved and acknowledged. Determined only for requests that may be slow.
    pub(super) moved: u64,
}

impl Held {
    pub(super) fn may_be_slow(&self) -> bool {
        let is_receiving = matches!(self.input, Some((Awaited::Rest, _)));
        is_receiving || (self.is_sending && self.input.is_none())
    }
}

/// The displacement state of one server.
#[derive(Debug)]
pub(super) struct Displacer {
    policy: Displacement,
    state: Mutex<State>,
    /// A shortage is in progress.
    is_on: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// The table need not be searched before this time.
    next: Option<Instant>,
    /// The beginning and the last search of the current shortage.
    short: Option<(Instant, Instant)>,
    /// Bytes moved by requests that may be slow, with the time of the measurement.
    marks: HashMap<RequestId, (u64, Instant)>,
    episode: Option<Episode>,
}

#[derive(Clone, Copy, Debug)]
struct Episode {
    began: Instant,
    last: Instant,
    displaced: u64,
}

/// The result of a search.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) victims: Vec<RequestId>,
    /// The victims are the first of a shortage.
    pub(super) is_first: bool,
}

impl Displacer {
    pub(super) fn new(policy: Displacement) -> Self {
        Self {
            policy,
            state: Mutex::default(),
            is_on: AtomicBool::new(false),
        }
    }

    pub(super) fn is_off(&self) -> bool {
        !self.policy.is_on
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Searches the requests that `look` returns, if a search is due. Returns the time of the next
    /// search.
    pub(super) fn search(&self, look: impl FnOnce() -> Vec<Held>) -> (Found, Option<Instant>) {
        if self.is_off() {
            return (Found::default(), None);
        }
        let mut state = self.lock();
        let now = Instant::now();
        if let Some(next) = state.next.filter(|next| *next > now) {
            return (Found::default(), Some(next));
        }
        let since = match state.short {
            Some((since, last)) if now - last < STALE => since,
            _ => now,
        };
        state.short = Some((since, now));
        let held = look();
        let limit = slow_below(now - since);
        let (victims, next) = state.choose(&held, self.policy.idle, limit, now);
        let took = now.elapsed();
        let pause = PAUSE.max(took.saturating_mul(PAUSE_TIMES));
        let next = if victims.is_empty() {
            (now + next).max(now + pause)
        } else {
            now + pause
        };
        state.next = Some(next);
        let is_first = !victims.is_empty() && self.count(&mut state, victims.len(), now);
        (Found { victims, is_first }, Some(next))
    }

    /// Counts a request that was displaced by another rule. Returns true if it is the first of a
    /// shortage.
    pub(super) fn count_one(&self) -> bool {
        self.count(&mut self.lock(), 1, Instant::now())
    }

    fn count(&self, state: &mut State, displaced: usize, now: Instant) -> bool {
        let is_first = state.count(displaced, now);
        if is_first {
            self.is_on.store(true, Ordering::Relaxed);
        }
        is_first
    }

    /// Ends a shortage that is over. Returns the number of displaced requests and the duration of
    /// the shortage. Otherwise returns the time of the next check.
    pub(super) fn settle(&self, now: Instant) -> Result<(u64, Duration), Option<Instant>> {
        if !self.is_on.load(Ordering::Relaxed) {
            return Err(None);
        }
        let mut state = self.lock();
        let Some(episode) = state.episode else {
            return Err(None);
        };
        if now < episode.last + EPISODE {
            return Err(Some(episode.last + EPISODE));
        }
        state.episode = None;
        state.marks = HashMap::new();
        self.is_on.store(false, Ordering::Relaxed);
        Ok((episode.displaced, episode.last - episode.began))
    }
}

/// Returns the threshold of slow transfers after a shortage of this duration, in bytes per second.
fn slow_below(short: Duration) -> u64 {
    let times = short.as_secs() / DOUBLES_EVERY.as_secs();
    let doubled = u32::try_from(times).ok().and_then(|n| SLOW.checked_shl(n));
    doubled.unwrap_or(SLOW_AT_MOST).clamp(SLOW, SLOW_AT_MOST)
}

impl State {
    fn count(&mut self, victims: usize, now: Instant) -> bool {
        let is_first = self.episode.is_none();
        let episode = self.episode.get_or_insert(Episode {
            began: now,
            last: now,
            displaced: 0,
        });
        episode.last = now;
        episode.displaced += victims as u64;
        is_first
    }

    /// Returns the requests to cancel. If there is none, the duration is the time until there may
    /// be one.
    fn choose(
        &mut self,
        held: &[Held],
        idle: Duration,
        slow: u64,
        now: Instant,
    ) -> (Vec<RequestId>, Duration) {
        let counts: PeerCounts = held.iter().map(|it| it.peer).collect();
        let has_most = |it: &Held| {
            let count = counts.of(it.peer);
            count >= MANY && count > held.len() / 2
        };
        let (mut silent, mut resting, mut slowly) = (Vec::new(), Vec::new(), Vec::new());
        // A request that works now can become idle or silent after this time at the earliest.
        let mut next = SILENCE.min(idle).max(PAUSE);
        let mut young = 0;
        let mut wait = |lasted: Duration, long: Duration| {
            let left = long.saturating_sub(lasted);
            if !left.is_zero() {
                next = next.min(left.max(PAUSE));
            }
            left.is_zero()
        };
        for it in held {
            let silence = if has_most(it) {
                SILENCE_OF_MOST
            } else {
                SILENCE
            };
            match it.input {
                Some((Awaited::Opening, _)) if wait(it.age, silence) => silent.push((*it, it.age)),
                Some((Awaited::Opening, _)) => young += 1,
                Some((Awaited::Close, lasted)) if wait(lasted, SILENCE_OF_MOST) => {
                    silent.push((*it, lasted));
                }
                Some((Awaited::Request, lasted)) if wait(lasted, BETWEEN_REQUESTS.min(idle)) => {
                    resting.push((*it, lasted));
                }
                Some((Awaited::Message, lasted)) if wait(lasted, idle) => {
                    resting.push((*it, lasted));
                }
                _ => {}
            }
        }
        self.mark(held, slow, now, &mut wait, &mut slowly);
        // If most slots are held by new clients whose time is not over, no other connection is
        // cancelled for them.
        let others = if young > held.len() / 2 {
            vec![silent]
        } else {
            vec![silent, resting, slowly]
        };
        let first = others.into_iter().find(|candidates| !candidates.is_empty());
        let most = (held.len() / SHARE).clamp(1, AT_ONCE);
        let victims = first.map_or_else(Vec::new, |candidates| pick(&counts, candidates, most));
        (victims, next)
    }

    /// Measures the progress of the requests that may be slow.
    fn mark(
        &mut self,
        held: &[Held],
        slow: u64,
        now: Instant,
        wait: &mut impl FnMut(Duration, Duration) -> bool,
        slowly: &mut Vec<(Held, Duration)>,
    ) {
        let before = std::mem::take(&mut self.marks);
        for it in held.iter().filter(|it| it.may_be_slow()) {
            let mark = before.get(&it.id).copied();
            let fresh = mark.filter(|(_, then)| now - *then < STALE);
            let (moved, then) = fresh.unwrap_or((it.moved, now));
            let watched = now - then;
            let mut kept = (moved, then);
            if wait(watched, WINDOW) {
                let millis = u64::try_from(watched.as_millis())
                    .unwrap_or(u64::MAX)
                    .max(1);
                let rate = it.moved.saturating_sub(moved).saturating_mul(1000) / millis;
                if rate < slow {
                    slowly.push((*it, it.age));
                } else {
                    kept = (it.moved, now);
                }
            }
            self.marks.insert(it.id, kept);
        }
    }
}

/// Picks up to `most` requests, each the oldest of the peer that holds most slots.
fn pick(counts: &PeerCounts, mut candidates: Vec<(Held, Duration)>, most: usize) -> Vec<RequestId> {
    // The oldest is last, because `pop` takes the last.
    candidates.sort_unstable_by_key(|(it, lasted)| (*lasted, Reverse(it.id)));
    let mut of_peers: HashMap<Option<PeerKey>, Vec<RequestId>> = HashMap::new();
    for (it, _) in candidates {
        of_peers.entry(it.peer).or_default().push(it.id);
    }
    let mut by_count: BinaryHeap<_> = of_peers
        .into_iter()
        .map(|(peer, ids)| (counts.of(peer), ids))
        .collect();
    let mut victims = Vec::new();
    while victims.len() < most
        && let Some((count, mut ids)) = by_count.pop()
    {
        victims.extend(ids.pop());
        if !ids.is_empty() {
            by_count.push((count.saturating_sub(1), ids));
        }
    }
    victims
}

impl<T: Transport, C: Concurrency> Server<T, C> {
    /// Returns true if requests of this server can make room: the accept loop runs while they are
    /// served, and they have connections that can be cancelled.
    pub(super) fn may_displace(&self) -> bool {
        !C::IS_INLINE && !T::IS_DATAGRAM && self.shared.displaces()
    }

    /// Cancels requests to make room for more. Returns their number and the time of the next try.
    pub(super) fn make_room(&self) -> (usize, Option<Instant>) {
        if !self.may_displace() {
            return (0, None);
        }
        let is_at_max = self.shared.active() >= self.shared.admission.max_active();
        if is_at_max || self.concurrency.counts_suspended() {
            self.shared.make_room(Holding::Slot, "requests")
        } else {
            self.shared.make_room(Holding::Thread, "threads")
        }
    }

    /// Makes room for clients in the queue and in the kernel's backlogs. Returns the time of the
    /// next try.
    pub(super) fn make_room_for_those_who_wait(
        &mut self,
        poller: &Poller,
    ) -> Result<Option<Instant>, ServeError> {
        if !self.may_displace() {
            return Ok(None);
        }
        if let Some(since) = self.concurrency.waits_since() {
            // For a shorter wait, the threads are only busy.
            let short = since + BUSY;
            if Instant::now() < short {
                return Ok(Some(short));
            }
            return Ok(self.shared.make_room(Holding::Thread, "threads").1);
        }
        let is_queued = !self.progress.queue.is_empty();
        if self.has_room() {
            return Ok(None);
        }
        let mut is_waited_for = is_queued;
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if listener.is_waited_at {
                // The client may have disconnected, or another process that shares the socket may
                // have accepted it.
                if has_client(&listener.listener) {
                    is_waited_for = true;
                } else {
                    listener.watch_once_more(poller, self.progress.member, index)?;
                }
            }
        }
        Ok(if is_waited_for {
            self.make_room().1
        } else {
            None
        })
    }

    /// Handles a lack of descriptors. Returns true if requests that hold descriptors were
    /// cancelled, or if clients wait until some can be cancelled.
    pub(super) fn makes_room_by_cutting(
        &mut self,
        listener: usize,
        errno: Errno,
        now: Instant,
    ) -> bool {
        if !matches!(errno, Errno::MFILE | Errno::NFILE) || !self.may_displace() {
            return false;
        }
        let (cut, again) = self.shared.make_room(Holding::Slot, "descriptors");
        if cut == 0 && self.concurrency.limit().1 != OverloadPolicy::Wait {
            return false;
        }
        self.exhausted(listener, &errno.into(), now);
        if let Some(again) = again {
            self.progress.back_off.no_later_than(again);
        }
        true
    }

    /// Returns the time until which a request without a slot may wait, in the queue or for a
    /// cancelled request to end.
    pub(super) fn place_without_room(&mut self, newcomer: &Address) -> Option<Instant> {
        let (cut, _) = self.make_room();
        let now = Instant::now();
        let made = match self.progress.room_made {
            _ if cut > 0 => (cut, Some(now)),
            // The cancelled requests have ended by now.
            (_, at) if at.is_none_or(|at| now - at > MADE) => (0, None),
            made => made,
        };
        self.progress.room_made = made;
        if let Some(until) = self.queue_place() {
            return Some(until);
        }
        if self.may_displace()
            && let OverloadPolicy::Queue { places: 1.., .. } = self.concurrency.limit().1
            && let Some(job) = self.progress.queue.displaced_by(newcomer)
        {
            self.shared.count_displaced("queue places");
            self.refuse(job, &Rejection::Displaced);
            return self.queue_place();
        }
        if self.concurrency.limit().1 != OverloadPolicy::Reject || made.0 == 0 {
            return None;
        }
        self.progress.room_made.0 -= 1;
        now.checked_add(MADE)
    }
}

/// Returns true if a client waits to be accepted.
fn has_client(listener: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    // If `poll` fails, the answer is yes, because the next accept reports the error.
    poll(&mut fds, Some(&Timespec::default())).map_or(true, |ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn held(id: u64, peer: u32, age: Duration, input: Option<(Awaited, Duration)>) -> Held {
        Held {
            id: RequestId(id),
            peer: Some(PeerKey::V4(peer)),
            age,
            input,
            is_sending: false,
            moved: 0,
        }
    }

    fn chosen(held: &[Held]) -> Vec<u64> {
        let (victims, _) = State::default().choose(held, IDLE, SLOW, Instant::now());
        victims.into_iter().map(RequestId::get).collect()
    }

    #[test]
    fn oldest_silent_connection_of_the_largest_peer_is_displaced_first() {
        let silent = |id, peer, age| held(id, peer, age, Some((Awaited::Opening, age)));
        let at_work = |id, peer| held(id, peer, IDLE * 9, None);
        let idle = held(1, 9, IDLE * 9, Some((Awaited::Message, IDLE * 8)));
        let all = [
            idle,
            silent(2, 1, SILENCE * 3),
            silent(3, 2, SILENCE),
            silent(4, 2, SILENCE * 2),
            silent(5, 2, SILENCE - MS),
            at_work(6, 3),
            at_work(7, 3),
            at_work(8, 3),
            at_work(9, 3),
        ];
        assert_eq!(chosen(&all), [4]);
        assert_eq!(chosen(&all[..2]), [2]);
        assert_eq!(chosen(&all[..1]), [1]);
        assert_eq!(chosen(&all[5..]), [0; 0]);
    }

    #[test]
    fn burst_of_new_clients_displaces_neither_itself_nor_idle_connections() {
        let mut all: Vec<_> = (1..=10)
            .map(|id| {
                held(
                    id,
                    u32::try_from(id).unwrap(),
                    400 * MS,
                    Some((Awaited::Opening, MS)),
                )
            })
            .collect();
        all.push(held(11, 1, IDLE * 9, Some((Awaited::Message, IDLE))));
        let (victims, next) = State::default().choose(&all, IDLE, SLOW, Instant::now());
        assert_eq!((victims, next), (vec![], 100 * MS));
        // A burst does not come from one address.
        all.iter_mut().for_each(|it| it.peer = Some(PeerKey::V4(1)));
        assert_eq!(chosen(&all), [1]);
    }

    #[test]
    fn idle_connection_is_displaced_after_its_time_and_sooner_with_http() {
        let idle = |id, what, lasted| held(id, 1, IDLE * 9, Some((what, lasted)));
        let early = idle(1, Awaited::Message, IDLE - MS);
        let of_http = idle(2, Awaited::Request, BETWEEN_REQUESTS);
        assert_eq!(chosen(&[early, of_http]), [2]);
        assert_eq!(chosen(&[early]), [0; 0]);
        assert_eq!(chosen(&[idle(3, Awaited::Message, IDLE)]), [3]);
    }

    #[test]
    fn slow_transfers_are_displaced_and_the_threshold_rises() {
        let mut state = State::default();
        let start = Instant::now();
        let at = |id, moved| Held {
            is_sending: true,
            moved,
            ..held(id, 1, IDLE, None)
        };
        let choose = |state: &mut State, all: &[Held], slow, now| {
            let (victims, _) = state.choose(all, IDLE, slow, now);
            victims.into_iter().map(RequestId::get).collect::<Vec<_>>()
        };
        assert!(choose(&mut state, &[at(1, 0), at(2, 0)], SLOW, start).is_empty());
        let now = start + WINDOW;
        let later = [at(1, 300), at(2, 5000)];
        assert_eq!(choose(&mut state, &later, SLOW, now), [1]);
        let now = now + WINDOW;
        assert!(choose(&mut state, &[at(2, 10_000)], SLOW, now).is_empty());
        let now = now + WINDOW;
        assert_eq!(choose(&mut state, &[at(2, 15_000)], 8192, now), [2]);
        assert_eq!(slow_below(Duration::ZERO), SLOW);
        assert_eq!(slow_below(DOUBLES_EVERY * 2), SLOW * 4);
        assert_eq!(slow_below(Duration::from_secs(1 << 40)), SLOW_AT_MOST);
    }

    #[test]
    fn one_round_displaces_only_a_share_of_the_requests() {
        let all: Vec<_> = (1..=160)
            .map(|id| {
                let peer = u32::try_from(id % 2).unwrap();
                held(id, peer, IDLE, Some((Awaited::Opening, IDLE)))
            })
            .collect();
        let mut victims = chosen(&all);
        victims.sort_unstable();
        // The peers hold equally many slots, so the oldest of each is cancelled in turn.
        assert_eq!(victims, (1..=20).collect::<Vec<_>>());
    }

    #[test]
    fn shortage_begins_once_and_ends_once() {
        let displacer = Displacer::new(Displacement::default());
        assert_eq!(displacer.settle(Instant::now()), Err(None));
        let look = || vec![held(1, 1, IDLE, Some((Awaited::Opening, IDLE)))];
        let (found, _) = displacer.search(look);
        assert_eq!((found.victims.len(), found.is_first), (1, true));
        // A search at once afterwards does not look at the table.
        let (found, next) = displacer.search(|| unreachable!("it was searched just now"));
        assert!(found.victims.is_empty() && next.is_some());
        assert!(matches!(displacer.settle(Instant::now()), Err(Some(_))));
        let over = Instant::now() + EPISODE;
        assert!(matches!(displacer.settle(over), Ok((1, _))));
        assert_eq!(displacer.settle(over), Err(None));
        let off = Displacer::new(Displacement::off());
        assert_eq!(off.search(|| unreachable!("it is off")).1, None);
    }
}
