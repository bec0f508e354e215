//! Places are short, and a client waits for one: which connections use nothing and make room.
//!
//! It costs nothing while places are not short: then the table of live requests is not looked at.

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
use crate::admission::PeerKey;
use crate::concurrency::{Concurrency, OverloadPolicy};
use crate::transport::Transport;
use crate::waiting::Awaited;
use crate::{Address, Rejection, ServeError};

/// How long a client may take to its first complete message, header or handshake, while others wait for
/// a place: two round trips to any place on Earth, so that a burst of good clients does not displace
/// itself.
const SILENCE: Duration = Duration::from_millis(500);
/// The same for the clients of an address that has more than half of all places, and so many at least.
const SILENCE_OF_MOST: Duration = Duration::from_millis(100);
const MANY: usize = 8;
/// How long a connection of HTTP may be kept alive without a request meanwhile.
const BETWEEN_REQUESTS: Duration = Duration::from_secs(1);
/// The same for connections of other protocols, unless the server says otherwise.
const IDLE: Duration = Duration::from_secs(10);
/// How long a transfer is watched before it is called slow. A peer confirms what it reads in pieces.
const WINDOW: Duration = Duration::from_secs(1);
/// What is known of a transfer is forgotten when it was not looked at for so long.
const STALE: Duration = Duration::from_secs(5);
/// A transfer slower than this, in bytes per second, may be cut when places begin to be short. Every two
/// seconds it is twice as much.
const SLOW: u64 = 1 << 10;
/// Faster ones are not cut, however long places are short.
const SLOW_AT_MOST: u64 = 16 << 10;
const DOUBLES_EVERY: Duration = Duration::from_secs(2);
/// Of so many requests one is cut at a time.
const SHARE: usize = 8;
/// But no more than so many.
const AT_ONCE: usize = 64;
/// The table is searched no more often than this, and for no more than a twentieth of the time.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_TIMES: u32 = 20;
/// How long a client that would be rejected may wait for a request that was cut to end.
const MADE: Duration = Duration::from_secs(1);
/// How long a request waits for a thread of a pool before threads are short.
const BUSY: Duration = Duration::from_millis(20);
/// Places that were not short for so long are taken for enough; see `Event::DisplacementEnded`.
const EPISODE: Duration = Duration::from_secs(10);

/// Which connections make room for others while places are short; see
/// [`Builder::displacement`](crate::Builder::displacement).
///
/// Places are short when a client waits that there is no thread, no coroutine, no descriptor or no
/// [allowed request](crate::Admission::max_active) for. Then connections are cut that hold a place and use
/// nothing, in this order:
///
/// 1. those that have not sent a complete message yet (a header of a proxy, a TLS handshake, a head of
///    HTTP, a frame) for half a second, or a tenth of one if their address has most of the places;
/// 2. those that are [idle](Self::idle): their handler waits for the next message, and nothing of it has
///    arrived (nor of the first, where there is no limit on that: [`Timeouts::first_byte`]).
///    Connections of HTTP between two requests are idle after a second;
/// 3. those that are slow: while they are waited for, they move fewer bytes than 1 KiB per second. This
///    rate doubles every two seconds, up to 16 KiB per second.
///
/// Of these the oldest goes first, of the address that has most places. A request whose handler is at
/// work is never cut, and nothing happens while no client waits. What is cut ends with
/// [`EndReason::Displaced`](crate::EndReason::Displaced).
///
/// [`Timeouts::first_byte`]: crate::Timeouts::first_byte
///
/// Under [`Sequential`](crate::Sequential) the server notices no other client while it serves one.
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
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// No connection makes room for another one.
    #[must_use]
    pub fn off() -> Self {
        Self {
            is_on: false,
            ..Self::default()
        }
    }

    /// How long a connection has to wait for a message before it is idle: 10 s by default.
    #[must_use]
    pub fn idle(mut self, time: Duration) -> Self {
        self.idle = time;
        self
    }
}

/// Which requests have what is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holding {
    /// All live ones: a descriptor, say.
    ChildSlot,
    /// Those that do not wait in a pause: a thread of a pool.
    Thread,
}

/// What is known of one request that holds what is short.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) id: RequestId,
    /// `None` for peers without an IP address, which are taken for one.
    pub(super) peer: Option<PeerKey>,
    pub(super) age: Duration,
    /// What its peer is waited for, and for how long it was.
    pub(super) input: Option<(Awaited, Duration)>,
    /// Whether it waits for room to send something.
    pub(super) is_sending: bool,
    /// Bytes moved and confirmed; looked up only for those that may be slow.
    pub(super) moved: u64,
}

impl Held {
    pub(super) fn may_be_slow(&self) -> bool {
        let is_receiving = matches!(self.input, Some((Awaited::Rest, _)));
        is_receiving || (self.is_sending && self.input.is_none())
    }
}

/// What one server has done about it so far.
#[derive(Debug)]
pub(super) struct Displacer {
    policy: Displacement,
    state: Mutex<State>,
    /// An episode is under way.
    is_on: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// The table need not be searched before.
    next: Option<Instant>,
    /// Since when places are short, and when they were last.
    short: Option<(Instant, Instant)>,
    /// Bytes that those have moved which may be slow.
    marks: HashMap<RequestId, (u64, Instant)>,
    episode: Option<Episode>,
}

#[derive(Clone, Copy, Debug)]
struct Episode {
    began: Instant,
    last: Instant,
    displaced: u64,
}

/// What a search came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) victims: Vec<RequestId>,
    /// These are the first of an episode.
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

    /// Searches what `look` finds in the table, if it is time to. Returns when to search again.
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
        let is_first = !victims.is_empty() && state.count(victims.len(), now);
        if is_first {
            self.is_on.store(true, Ordering::Relaxed);
        }
        (Found { victims, is_first }, Some(next))
    }

    /// Counts one that was cut by a rule of its own; whether it is the first of an episode.
    pub(super) fn count_one(&self) -> bool {
        let is_first = self.lock().count(1, Instant::now());
        if is_first {
            self.is_on.store(true, Ordering::Relaxed);
        }
        is_first
    }

    /// Ends an episode whose time is over: how many were cut in it, and how long it took. Otherwise
    /// returns when to ask again.
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

/// What is slow after places were short for so long, in bytes per second.
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

    /// Those that have to go, or none, and then how long it takes until there may be one.
    fn choose(
        &mut self,
        held: &[Held],
        idle: Duration,
        slow: u64,
        now: Instant,
    ) -> (Vec<RequestId>, Duration) {
        let places = places(held);
        let has_most = |it: &Held| {
            let places = places.get(&it.peer).copied().unwrap_or_default();
            places >= MANY && places > held.len() / 2
        };
        let (mut silent, mut resting, mut slowly) = (Vec::new(), Vec::new(), Vec::new());
        // One that is at work now may be idle, or silent, after as long as it takes to be called so.
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
        // Most of the places are held by those that have had no time yet: others are not cut for them.
        let others = if young > held.len() / 2 {
            vec![silent]
        } else {
            vec![silent, resting, slowly]
        };
        let first = others.into_iter().find(|candidates| !candidates.is_empty());
        let most = (held.len() / SHARE).clamp(1, AT_ONCE);
        let victims = first.map_or_else(Vec::new, |candidates| pick(held, candidates, most));
        (victims, next)
    }

    /// Looks at how far those have got that may be slow.
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

/// How many places each peer has.
fn places(held: &[Held]) -> HashMap<Option<PeerKey>, usize> {
    let mut places = HashMap::new();
    for it in held {
        *places.entry(it.peer).or_default() += 1;
    }
    places
}

/// Picks the oldest of the peer that has most places, as often as is wanted.
fn pick(held: &[Held], mut candidates: Vec<(Held, Duration)>, most: usize) -> Vec<RequestId> {
    let places = places(held);
    // The oldest last, where it is taken from.
    candidates.sort_unstable_by_key(|(it, lasted)| (*lasted, Reverse(it.id)));
    let mut of_peers: HashMap<Option<PeerKey>, Vec<RequestId>> = HashMap::new();
    for (it, _) in candidates {
        of_peers.entry(it.peer).or_default().push(it.id);
    }
    let mut by_places: BinaryHeap<_> = of_peers
        .into_iter()
        .map(|(peer, ids)| (places.get(&peer).copied().unwrap_or_default(), ids))
        .collect();
    let mut victims = Vec::new();
    while victims.len() < most
        && let Some((places, mut ids)) = by_places.pop()
    {
        victims.extend(ids.pop());
        if !ids.is_empty() {
            by_places.push((places.saturating_sub(1), ids));
        }
    }
    victims
}

impl<T: Transport, C: Concurrency> Server<T, C> {
    /// Whether requests of this server can make room: the loop has to get to it while they are served,
    /// and they have connections that can be cut.
    pub(super) fn may_displace(&self) -> bool {
        !C::IS_INLINE && !T::IS_DATAGRAM && self.shared.displaces()
    }

    /// Cuts what makes room for more. Returns how many, and when to try again.
    pub(super) fn make_room(&self) -> (usize, Option<Instant>) {
        if !self.may_displace() {
            return (0, None);
        }
        let is_at_max = self.shared.active() >= self.shared.admission.max_active();
        if is_at_max || self.concurrency.counts_suspended() {
            self.shared.make_room(Holding::ChildSlot, "requests")
        } else {
            self.shared.make_room(Holding::Thread, "threads")
        }
    }

    /// The same for clients in the queue, and in those of the kernel. Returns when to try again.
    pub(super) fn make_room_for_those_who_wait(
        &mut self,
        poller: &Poller,
    ) -> Result<Option<Instant>, ServeError> {
        if !self.may_displace() {
            return Ok(None);
        }
        if let Some(since) = self.concurrency.waits_since() {
            // For less than that, others are only busy.
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
                // It may have gone, or others that share the socket may have taken it.
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

    /// Descriptors have run out: whether requests were cut that have some, or clients are to wait until
    /// some may be.
    pub(super) fn makes_room_by_cutting(
        &mut self,
        listener: usize,
        errno: Errno,
        now: Instant,
    ) -> bool {
        if !matches!(errno, Errno::MFILE | Errno::NFILE) || !self.may_displace() {
            return false;
        }
        let (cut, again) = self.shared.make_room(Holding::ChildSlot, "descriptors");
        if cut == 0 && self.concurrency.limit().1 != OverloadPolicy::Wait {
            return false;
        }
        self.exhausted(listener, &errno.into(), now);
        if let Some(again) = again {
            self.progress.back_off.no_later_than(again);
        }
        true
    }

    /// Until when a request that there is no room for may wait all the same: in the queue, or for one
    /// that is being cut.
    pub(super) fn place_without_room(&mut self, newcomer: &Address) -> Option<Instant> {
        let (cut, _) = self.make_room();
        let now = Instant::now();
        let made = match self.progress.room_made {
            _ if cut > 0 => (cut, Some(now)),
            // By now they have gone.
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

/// Whether a client waits to be accepted.
fn has_client(listener: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    // If it cannot be asked it is taken for one: accepting knows better.
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
    fn the_oldest_silent_one_of_the_peer_with_most_places_goes_first() {
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
    fn a_burst_of_new_clients_displaces_neither_itself_nor_idle_ones() {
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
        // That they are of one address says that they are no such burst.
        all.iter_mut().for_each(|it| it.peer = Some(PeerKey::V4(1)));
        assert_eq!(chosen(&all), [1]);
    }

    #[test]
    fn an_idle_connection_goes_after_its_time_and_sooner_with_http() {
        let idle = |id, what, lasted| held(id, 1, IDLE * 9, Some((what, lasted)));
        let early = idle(1, Awaited::Message, IDLE - MS);
        let of_http = idle(2, Awaited::Request, BETWEEN_REQUESTS);
        assert_eq!(chosen(&[early, of_http]), [2]);
        assert_eq!(chosen(&[early]), [0; 0]);
        assert_eq!(chosen(&[idle(3, Awaited::Message, IDLE)]), [3]);
    }

    #[test]
    fn slow_transfers_are_found_by_what_they_move_and_the_rate_rises() {
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
    fn many_are_cut_at_once_but_a_share_only() {
        let all: Vec<_> = (1..=160)
            .map(|id| {
                let peer = u32::try_from(id % 2).unwrap();
                held(id, peer, IDLE, Some((Awaited::Opening, IDLE)))
            })
            .collect();
        let mut victims = chosen(&all);
        victims.sort_unstable();
        // The oldest of each in turn: they have equally many.
        assert_eq!(victims, (1..=20).collect::<Vec<_>>());
    }

    #[test]
    fn an_episode_begins_once_and_ends_once() {
        let displacer = Displacer::new(Displacement::default());
        assert_eq!(displacer.settle(Instant::now()), Err(None));
        let look = || vec![held(1, 1, IDLE, Some((Awaited::Opening, IDLE)))];
        let (found, _) = displacer.search(look);
        assert_eq!((found.victims.len(), found.is_first), (1, true));
        // At once again it does not look at all.
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
