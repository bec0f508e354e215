//! What the process does about signals: the first one that stops it drains, a second one forces, and
//! SIGHUP reloads the configuration if there is one; else it is one of those that stop.

mod stop;

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level::pipe;
use socketserver::ServerGroup;

use crate::cli::Model;
use crate::config::Reloader;
use crate::terminal;
use stop::{Asked, Stop};

pub(crate) use stop::{Patience, drain};

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
        patience: Patience,
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
        let mut stop = Stop::new(self.forced, group, patience, model);
        let mut stops = self.stops;
        let wait_for_signals = move || {
            loop {
                let arrived = stops
                    .set_read_timeout(stop.lame_for())
                    .and_then(|()| stops.read(&mut [0; 16]));
                match arrived {
                    Ok(1..) if stop.signalled() == Asked::ToForce => {
                        // A handler may be stuck on the serving thread itself.
                        let _ = stop.wait(FORCED);
                        terminal::restore();
                        std::process::exit(1);
                    }
                    Ok(1..) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => stop.lame_is_over(),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => return,
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
        patience: Patience,
        reloader: Option<Reloader>,
    ) -> io::Result<()> {
        if let (Some(reloads), Some(reloader)) = (self.reloads, reloader) {
            watch(group, reloads, move || drop(reloader.reload()))?;
        }
        let stop = Stop::new(self.forced, group, patience, Model::Forking);
        let stop = Arc::new(Mutex::new(stop));
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let (over, alarm) = (stop.clone(), timer.try_clone()?);
        watch(group, timer, move || lock(&over).lame_is_over())?;
        watch(group, self.stops, move || {
            let mut stop = lock(&stop);
            stop.signalled();
            if let Some(left) = stop.lame_for()
                && let Err(error) = set(&alarm, left)
            {
                tracing::warn!(%error, "it cannot be lame for a time, and drains at once");
                stop.lame_is_over();
            }
        })
    }
}

fn lock(stop: &Mutex<Stop>) -> MutexGuard<'_, Stop> {
    stop.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the timer ring once.
fn set(timer: impl AsFd, after: Duration) -> io::Result<()> {
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(after).map_err(io::Error::other)?,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

/// Has the servers' loop read what has arrived, and then call.
fn watch(
    group: &mut ServerGroup,
    arrivals: impl Into<OwnedFd>,
    mut call: impl FnMut() + Send + 'static,
) -> io::Result<()> {
    let arrivals = arrivals.into();
    let bytes = arrivals.try_clone()?;
    group.watch(arrivals, move || {
        rustix::io::read(&bytes, &mut [0; 16])?;
        call();
        Ok(())
    });
    Ok(())
}

/// Whether whoever has started this process wants it to survive its terminal.
fn is_hup_ignored() -> bool {
    is_ignored(SIGHUP)
}

/// Whether this process was started with a signal ignored: proc(5), `SigIgn`.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
