//! The accept loop of one server or several: it sleeps until a descriptor is ready, and gives each
//! member a turn. The loop makes no decision about requests.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::poller::Poller;
use super::{RequestOutcome, ServerHandle, ServerState};
use crate::park::Parker;
use crate::timeouts::earliest;
use crate::user_code::call_user_code;
use crate::{Result, ServeError, concurrency};

/// A ready descriptor: one of a member, or one that the application watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Waker { member: u32 },
    Listener { member: u32, index: u32 },
    Child { member: u32, pid: u32 },
    Watch { index: u32 },
}

impl Token {
    const KIND: u32 = 30;

    /// Two bits for the kind, thirty for the member, then the index. A process id has at most 22
    /// bits.
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

/// Registers the children of a concurrency model in the accept loop that serves it.
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

/// The condition that ends a run of the loop.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RunUntil {
    /// Until a stop or the end of a drain.
    Stopped,
    /// Until one request was accepted, or until this time.
    OneRequest(Option<Instant>),
}

/// The result of a turn.
pub(crate) enum TickResult {
    /// Sleep, at most until this time.
    Sleep(Option<Instant>),
    /// The member has stopped.
    Done(RequestOutcome),
    /// This process is a child: leave the loop, release everything, run the closure, and exit.
    InChild(Box<dyn FnOnce() -> i32>),
}

/// A server in the accept loop.
pub(crate) trait LoopMember {
    /// Returns the properties of the concurrency model.
    fn model(&self) -> ModelTraits;
    fn handle(&self) -> ServerHandle;
    fn loop_parker(&self) -> Option<Arc<dyn Parker>>;
    fn enter(&mut self, poller: &Poller, member: u32, until: RunUntil) -> Result<(), ServeError>;
    fn ready(&mut self, poller: &Poller, source: Token);
    fn tick(&mut self, poller: &Poller, now: Instant) -> Result<TickResult, ServeError>;
    fn leave(&mut self, poller: &Poller);
    fn abandon_in_child(&mut self);
}

/// The properties of a concurrency model that matter to other members of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModelTraits {
    pub(crate) name: &'static str,
    pub(crate) forks: bool,
    pub(crate) has_threads: bool,
    /// The model dispatches requests to a few threads, which should not be preempted for each
    /// request.
    pub(crate) hands_off_to_workers: bool,
}

/// A descriptor that the application watches, and the callback for when it is readable.
pub(crate) struct Watch {
    pub(crate) fd: OwnedFd,
    pub(crate) call: Box<dyn FnMut() -> Result<Watched> + Send>,
    /// The callback has failed or returned `Done`, and is not called again.
    over: bool,
}

/// The result of a [`Server::watch`](crate::Server::watch) callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Call again when the descriptor is readable. `()` means the same.
    Again,
    /// Stop watching the descriptor, for example because its input has ended.
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

    /// Forgets the closure in a forked child, because its contents belong to the parent.
    pub(crate) fn abandon_in_child(self) {
        std::mem::forget(self.call);
    }
}

/// Serves until every member has stopped. Returns the result of the last member. The last
/// `sidecars` members are served as long as any other member is. The poller is made on first use
/// and kept, so that a server that serves request by request does not fail for lack of a
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
        // The child leaves the epoll set alone. The parent uses the same set, and would lose its
        // registrations.
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

/// Rejects a forking server beside threads before the first request, because its fork would fail.
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
    // Created here, so that threads which a model started before are not affected.
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
            // A failed callback may not have read its descriptor, which would spin the loop.
            poller.remove(&watch.fd);
            watch.over = true;
            if let Err(cause) = watched {
                members[0].handle().0.hook_failed("watch", cause);
            }
        }
    }
}

/// The time that sidecars have for their requests when all other members have stopped.
const SIDECAR_DRAIN: Duration = Duration::from_millis(500);

/// Stops the sidecars as the other members stopped: for good, or until the next run.
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
