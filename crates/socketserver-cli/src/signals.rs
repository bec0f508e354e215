//! What the process does about signals: the first one that stops it drains, a second one forces, and
//! SIGHUP reloads the configuration if there is one; else it is one of those that stop.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level::pipe;
use socketserver::{GroupController, ServerGroup};

use crate::cli::Model;
use crate::config::Reloader;
use crate::{service_manager, terminal};

/// How long a forced end may take: a drain without time needs up to two seconds, to cut handlers
/// and then to kill children.
const FORCED: Duration = Duration::from_secs(3);

/// Signals that have arrived, as bytes in socket pairs.
pub(crate) struct Signals {
    stops: UnixStream,
    /// Of its own, so that a file that is slow to read does not hold up a stop.
    reloads: Option<UnixStream>,
    forced: Arc<AtomicBool>,
}

impl Signals {
    /// From now on these signals are caught. They take effect once one of
    /// the methods below was called, and none is lost in between.
    pub(crate) fn catch(reloads: bool) -> io::Result<Self> {
        let (stops, handler) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGQUIT] {
            pipe::register(signal, handler.try_clone()?)?;
        }
        let mut hangups = None;
        if reloads {
            // Whoever wants it to be ignored, as nohup does, loses nothing by a reload.
            let (arrivals, handler) = UnixStream::pair()?;
            pipe::register(SIGHUP, handler)?;
            hangups = Some(arrivals);
        } else if !is_hup_ignored() {
            // The terminal is gone.
            pipe::register(SIGHUP, handler)?;
        }
        Ok(Self {
            stops,
            reloads: hangups,
            forced: Arc::default(),
        })
    }

    /// Set once a second signal has arrived.
    pub(crate) fn forced(&self) -> Arc<AtomicBool> {
        self.forced.clone()
    }

    /// Drains the group's servers from a thread, which reaches a server that is busy itself with a
    /// handler, and reloads their configuration from another one.
    pub(crate) fn heed_in_threads(
        self,
        group: &ServerGroup,
        timeout: Duration,
        model: Model,
        reloader: Option<Reloader>,
    ) -> io::Result<()> {
        if let (Some(mut reloads), Some(reloader)) = (self.reloads, reloader) {
            let wait_for_hangups = move || {
                while let Ok(1..) = reloads.read(&mut [0; 16]) {
                    reloader.reload();
                }
            };
            std::thread::Builder::new()
                .name("reload".into())
                .spawn(wait_for_hangups)?;
        }
        let mut stop = Stop::new(self.forced, group, timeout, model);
        let mut stops = self.stops;
        let wait_for_signals = move || {
            while let Ok(1..) = stops.read(&mut [0; 16]) {
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

    /// The same from the servers' own loop, for a process that must not have threads.
    pub(crate) fn heed_in_loop(
        self,
        group: &mut ServerGroup,
        timeout: Duration,
        reloader: Option<Reloader>,
    ) -> io::Result<()> {
        if let (Some(reloads), Some(reloader)) = (self.reloads, reloader) {
            watch(group, reloads, move || drop(reloader.reload()))?;
        }
        let mut stop = Stop::new(self.forced, group, timeout, Model::Forking);
        watch(group, self.stops, move || {
            stop.signalled();
        })
    }
}

fn watch(
    group: &mut ServerGroup,
    arrivals: UnixStream,
    mut call: impl FnMut() + Send + 'static,
) -> io::Result<()> {
    let mut bytes = arrivals.try_clone()?;
    group.watch(arrivals, move || {
        let _ = bytes.read(&mut [0; 16])?;
        call();
        Ok(())
    });
    Ok(())
}

/// Drains the group's servers. A sequential one may be busy itself, with a handler that waits for
/// something else than its client, and cannot cut that at the deadline: then somebody else does.
pub(crate) fn drain(group: &GroupController, timeout: Duration, model: Model) {
    service_manager::stopping(timeout);
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
