//! The loop that drives one server or several: it sleeps until something is ready, and gives each
//! member a turn. It decides nothing itself.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::poller::Poller;
use super::{RequestOutcome, ServerHandle, ServerState};
use crate::park::Parker;
use crate::timeouts::earliest;
use crate::user_code::call_user_code;
use crate::{Result, ServeError, concurrency};

/// What became ready: a descriptor of a member, or one that the application wants to have watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Waker { member: u32 },
    Listener { member: u32, index: u32 },
    Child { member: u32, pid: u32 },
    Watch { index: u32 },
}

impl Token {
    const KIND: u32 = 30;

    /// Two bits of kind and thirty of member; then the index. A process id has at most 22 bits.
    pub(crate) fn pack(self) -> u64 {
        let (kind, member, index) = match self {
            Self::Waker { member } => (0, member, 0),
            Self::Listener { member, index } => (1, member, index),
            Self::Child { member, pid } => (2, member, pid),
            Self::Watch { index } => (3, 0, index),
        };
        u64::from(kind << Self::KIND | member) << 32 | u64::from(index)
    }

    pub(crate) fn unpack(data: u64) -> Self {
        let (high, index) = (narrow(data >> 32), narrow(data & u64::from(u32::MAX)));
        let member = high & ((1 << Self::KIND) - 1);
        match high >> Self::KIND {
            0 => Self::Waker { member },
            1 => Self::Listener { member, index },
            2 => Self::Child { member, pid: index },
            _ => Self::Watch { index },
        }
    }
}

pub(crate) fn narrow(value: impl TryInto<u32>) -> u32 {
    value.try_into().unwrap_or(u32::MAX)
}

/// Lets a concurrency model watch its children in the loop that it is served by.
#[derive(Clone, Copy)]
pub struct ChildWatcher<'a> {
    pub(crate) poller: &'a Poller,
    pub(crate) member: u32,
}

impl ChildWatcher<'_> {
    pub(crate) fn watch(&self, fd: impl AsFd, pid: u32) -> Result<(), ServeError> {
        self.poller.add(
            fd,
            Token::Child {
                member: self.member,
                pid,
            },
        )
    }

    pub(crate) fn forget(&self, fd: impl AsFd) {
        self.poller.remove(fd);
    }
}

impl std::fmt::Debug for ChildWatcher<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChildSource")
            .field("member", &self.member)
            .finish_non_exhaustive()
    }
}

/// How long to serve.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RunUntil {
    /// Until a stop or the end of a drain.
    Stopped,
    /// Until one request was taken on, or this point in time.
    OneRequest(Option<Instant>),
}

/// What a turn came to.
pub(crate) enum TickResult {
    /// Sleep, but not for longer than this.
    Sleep(Option<Instant>),
    /// This member is done.
    Done(RequestOutcome),
    /// This is a child now: leave the loop, let go of everything, run this, and exit.
    InChild(Box<dyn FnOnce() -> i32>),
}

/// A server, as the loop sees it.
pub(crate) trait LoopMember {
    /// The concurrency model.
    fn model(&self) -> ModelTraits;
    fn handle(&self) -> ServerHandle;
    fn loop_parker(&self) -> Option<Arc<dyn Parker>>;
    fn enter(&mut self, poller: &Poller, member: u32, until: RunUntil) -> Result<(), ServeError>;
    fn ready(&mut self, poller: &Poller, source: Token);
    fn tick(&mut self, poller: &Poller, now: Instant) -> Result<TickResult, ServeError>;
    fn leave(&mut self, poller: &Poller);
    fn abandon_in_child(&mut self);
}

/// What the members of a loop need to know about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModelTraits {
    pub(crate) name: &'static str,
    pub(crate) forks: bool,
    pub(crate) has_threads: bool,
    /// It hands requests to few threads, which are not to be interrupted for each of them.
    pub(crate) hands_off_to_workers: bool,
}

/// A descriptor that the application wants to have watched, and what to do when it is readable.
pub(crate) struct Watch {
    pub(crate) fd: OwnedFd,
    pub(crate) call: Box<dyn FnMut() -> Result<Watched> + Send>,
    /// It has failed or said that it is done, and is not called again.
    over: bool,
}

/// Whether to go on with watching a descriptor; see [`Server::watch`](crate::Server::watch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Call again when it is readable. `()` means the same.
    Again,
    /// Watch it no longer: its input has ended, say.
    Done,
}

impl From<()> for Watched {
    fn from((): ()) -> Self {
        Self::Again
    }
}

impl Watch {
    pub(crate) fn new<W: Into<Watched>>(
        fd: OwnedFd,
        mut call: impl FnMut() -> Result<W> + Send + 'static,
    ) -> Self {
        Self {
            fd,
            call: Box::new(move || Ok(call()?.into())),
            over: false,
        }
    }

    /// In a forked child: what the closure owns is the parent's, and is not dropped here.
    pub(crate) fn abandon_in_child(self) {
        std::mem::forget(self.call);
    }
}

/// Serves until every member is done; returns what the last one came to. The last so many members are
/// companions, which are served for as long as there are others. The poller is made when it
/// is first needed, and kept: a server that serves request by request should not fail for want of a
/// descriptor.
pub(crate) fn run(
    poller: &mut Option<Poller>,
    members: &mut [&mut dyn LoopMember],
    sidecars: usize,
    watches: &mut Vec<Watch>,
    until: RunUntil,
) -> Result<RequestOutcome, ServeError> {
    let parker = match members {
        [one] => one.loop_parker(),
        _ => None,
    };
    check(members)?;
    let kept = match poller.take() {
        Some(kept) => kept,
        None => Poller::new(parker.as_deref())?,
    };
    let kept = poller.insert(kept);
    let mut active = vec![false; members.len()];
    let result = run_loop(kept, members, sidecars, &mut active, watches, until);
    if let Ok(LoopExit::InChild(_)) = result {
        // The child leaves no member: the epoll set is the parent's too, and taking a descriptor
        // out of it here would make the parent deaf to it.
        active.fill(false);
    }
    for (member, active) in members.iter_mut().zip(active) {
        if active {
            member.leave(kept);
        }
    }
    match result? {
        LoopExit::Served(handled) => Ok(handled),
        LoopExit::InChild(task) => {
            *poller = None;
            watches.drain(..).for_each(Watch::abandon_in_child);
            for member in members {
                member.abandon_in_child();
            }
            concurrency::exit(task());
        }
    }
}

/// A fork beside threads would be refused when the first request of both kinds meets.
fn check(members: &[&mut dyn LoopMember]) -> Result<(), ServeError> {
    let models = || members.iter().map(|member| member.model());
    let forking = models().find(|model| model.forks);
    let threads = models().find(|model| model.has_threads);
    match (forking, threads) {
        (Some(_), Some(other)) => Err(ServeError::ForkingBesideThreads { model: other.name }),
        _ => Ok(()),
    }
}

enum LoopExit {
    Served(RequestOutcome),
    InChild(Box<dyn FnOnce() -> i32>),
}

fn run_loop(
    poller: &Poller,
    members: &mut [&mut dyn LoopMember],
    sidecars: usize,
    active: &mut [bool],
    watches: &mut [Watch],
    until: RunUntil,
) -> Result<LoopExit, ServeError> {
    for (index, watch) in watches.iter().enumerate().filter(|(_, watch)| !watch.over) {
        poller.add(
            &watch.fd,
            Token::Watch {
                index: narrow(index),
            },
        )?;
    }
    for (index, member) in members.iter_mut().enumerate() {
        member.enter(poller, narrow(index), until)?;
        active[index] = true;
    }
    // From here on, as what a model has started meanwhile is not meant.
    let _feeding = (members.iter())
        .all(|member| member.model().hands_off_to_workers)
        .then(concurrency::hand_off_to_workers);
    let mut last = RequestOutcome::Stopped;
    let others = members.len() - sidecars;
    let mut sidecars_stopped = sidecars == 0;
    loop {
        let now = Instant::now();
        let mut wake_at = None;
        for (member, active) in members
            .iter_mut()
            .zip(active.iter_mut())
            .filter(|(_, a)| **a)
        {
            match member.tick(poller, now)? {
                TickResult::Sleep(at) => wake_at = earliest(wake_at, at),
                TickResult::Done(handled) => {
                    member.leave(poller);
                    *active = false;
                    last = handled;
                }
                TickResult::InChild(task) => {
                    return Ok(LoopExit::InChild(task));
                }
            }
        }
        if !active.contains(&true) {
            return Ok(LoopExit::Served(last));
        }
        if !sidecars_stopped && !active[..others].contains(&true) {
            sidecars_stopped = true;
            stop_sidecars(members, others);
        }
        let mut called = Vec::new();
        poller.wait(wake_at, |source| match source {
            Token::Watch { index } => called.push(index as usize),
            Token::Waker { member }
            | Token::Listener { member, .. }
            | Token::Child { member, .. } => {
                if active.get(member as usize) == Some(&true) {
                    members[member as usize].ready(poller, source);
                }
            }
        })?;
        for index in called {
            let watch = &mut watches[index];
            let watched = call_user_code(|| (watch.call)());
            if let Ok(Watched::Again) = watched {
                continue;
            }
            // One that fails may not have read its descriptor, and would spin.
            poller.remove(&watch.fd);
            watch.over = true;
            if let Err(cause) = watched {
                members[0].handle().0.hook_failed("watch", cause);
            }
        }
    }
}

/// How long companions have for the requests that they are serving when all others are done.
const SIDECAR_DRAIN: Duration = Duration::from_millis(500);

/// Asks companions to come to their end as the others did: for good, or for now.
fn stop_sidecars(members: &[&mut dyn LoopMember], others: usize) {
    let is_closed = |member: &&mut dyn LoopMember| member.handle().state() == ServerState::Closed;
    let for_good = members[..others].iter().all(is_closed);
    for sidecar in &members[others..] {
        if for_good {
            sidecar.handle().drain(SIDECAR_DRAIN);
        } else {
            sidecar.handle().shutdown();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_packing() {
        for source in [
            Token::Waker { member: 7 },
            Token::Listener {
                member: 3,
                index: 9,
            },
            Token::Child {
                member: (1 << 30) - 1,
                pid: 4_194_304,
            },
            Token::Watch { index: 1 },
        ] {
            assert_eq!(Token::unpack(source.pack()), source);
        }
    }
}
