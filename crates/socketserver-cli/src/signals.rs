//! SIGINT, SIGTERM and SIGHUP: the first drains, a second one forces.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use socketserver::{GroupController, ServerGroup};

use crate::cli::Model;
use crate::terminal;

/// How long a forced end may take: a drain without time needs up to two seconds, to cut handlers
/// and then to kill children.
const FORCED: Duration = Duration::from_secs(3);

/// Signals that have arrived, as bytes in a socket pair.
pub(crate) struct Signals {
    arrivals: UnixStream,
    forced: Arc<AtomicBool>,
}

impl Signals {
    /// From now on these signals are caught. They take effect once one of
    /// the methods below was called, and none is lost in between.
    pub(crate) fn catch(model: Model) -> io::Result<Self> {
        let (arrivals, handler) = UnixStream::pair()?;
        pipe::register(SIGTERM, handler.try_clone()?)?;
        // The terminal is gone. Under nohup, that is of no interest. To a forked child SIGHUP says
        // something else, and what is registered here could not be registered there.
        if model != Model::Forking && !is_hup_ignored() {
            pipe::register(SIGHUP, handler.try_clone()?)?;
        }
        pipe::register(SIGINT, handler)?;
        Ok(Self {
            arrivals,
            forced: Arc::default(),
        })
    }

    /// Set once a second signal has arrived.
    pub(crate) fn forced(&self) -> Arc<AtomicBool> {
        self.forced.clone()
    }

    /// Drains the group's servers from a thread, which reaches a server that is busy itself with a
    /// handler.
    pub(crate) fn drain_from_thread(
        self,
        group: &ServerGroup,
        timeout: Duration,
        model: Model,
    ) -> io::Result<()> {
        let mut stop = Stop::new(self.forced, group, timeout, model);
        let mut arrivals = self.arrivals;
        let wait_for_signals = move || {
            let mut bytes = [0; 16];
            while let Ok(1..) = arrivals.read(&mut bytes) {
                if stop.signalled() == Asked::ToForce {
                    // A handler may be stuck on the serving thread itself.
                    let _ = stop.group.wait(Some(FORCED));
                    terminal::restore();
                    std::process::exit(1);
                }
            }
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(wait_for_signals)
            .map(drop)
    }

    /// Drains the group's servers from their own loop, for a process that must not have threads.
    pub(crate) fn drain_from_loop(
        self,
        group: &mut ServerGroup,
        timeout: Duration,
    ) -> io::Result<()> {
        let mut stop = Stop::new(self.forced, group, timeout, Model::Forking);
        let mut arrivals = self.arrivals.try_clone()?;
        group.watch(self.arrivals, move || {
            let mut bytes = [0; 16];
            let _ = arrivals.read(&mut bytes)?;
            stop.signalled();
            Ok(())
        });
        Ok(())
    }
}

/// Drains the group's servers. A sequential one may be busy itself, with a handler that waits for
/// something else than its client, and cannot cut that at the deadline: then somebody else does.
pub(crate) fn drain(group: &GroupController, timeout: Duration, model: Model) {
    if model != Model::Sequential {
        return group.drain(timeout);
    }
    let drained = group.clone();
    let drain_and_cut = move || {
        drained.drain(timeout);
        if !drained.wait(Some(timeout)) {
            for server in drained.controllers() {
                for request in server.live() {
                    // It may have ended meanwhile.
                    let _ = server.cancel(request.info.id());
                }
            }
        }
    };
    let started = std::thread::Builder::new()
        .name("drain".into())
        .spawn(drain_and_cut);
    if let Err(error) = started {
        tracing::warn!(%error, "a handler that is busy when the time is over is not cut");
        group.drain(timeout);
    }
}

#[derive(PartialEq, Eq)]
enum Asked {
    ToDrain,
    ToForce,
}

/// Whether whoever has started this process wants it to survive its terminal: proc(5), `SigIgn`.
fn is_hup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (SIGHUP - 1) & 1 == 1)
}

/// Signals that come together are one: `timeout` sends its own to the process and to its group, and
/// a terminal that closes does so, too. Whoever loses patience takes longer.
const TOGETHER: Duration = Duration::from_millis(100);

struct Stop {
    group: GroupController,
    timeout: Duration,
    first: Option<Instant>,
    model: Model,
    forced: Arc<AtomicBool>,
}

impl Stop {
    fn new(forced: Arc<AtomicBool>, group: &ServerGroup, timeout: Duration, model: Model) -> Self {
        Self {
            group: group.controller(),
            timeout,
            model,
            first: None,
            forced,
        }
    }

    fn signalled(&mut self) -> Asked {
        let Some(first) = self.first else {
            self.first = Some(Instant::now());
            drain(&self.group, self.timeout, self.model);
            tracing::info!(timeout = ?self.timeout, "stop asked for; a second signal forces it");
            return Asked::ToDrain;
        };
        if first.elapsed() < TOGETHER {
            return Asked::ToDrain;
        }
        self.forced.store(true, Ordering::Relaxed);
        drain(&self.group, Duration::ZERO, self.model);
        tracing::warn!("forced to stop");
        Asked::ToForce
    }
}
