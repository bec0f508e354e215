//! The handling of signals. The first signal to stop begins a drain, and a second one forces the
//! end. SIGHUP reloads the configuration and reopens files; without a configuration and files to
//! reopen, it stops the server. SIGUSR1 reopens files. Other signals that by default would end the
//! process, but are sent for other reasons, are ignored.

mod shutdown;

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ,
};
use signal_hook::flag;
use signal_hook::low_level::pipe;
use socketserver::ServerGroup;

use crate::cli::Model;
use crate::config::Reloader;
use crate::{reopen, terminal};
use shutdown::{ShutdownRequest, Stop};

pub(crate) use shutdown::{ShutdownTimeouts, drain};

/// The maximum duration of a forced end. A drain without time takes up to two seconds: to cancel
/// handlers and then to kill children.
const FORCED: Duration = Duration::from_secs(3);

/// Signals that have arrived, as bytes in socket pairs.
pub(crate) struct Signals {
    stops: UnixStream,
    /// SIGHUP, if it does not stop the server. A separate socket pair, so that a slow file does not
    /// delay a stop.
    hangups: Option<UnixStream>,
    /// SIGUSR1, if there are files to reopen.
    reopens: Option<UnixStream>,
    /// True until a method attends to the signals; until then, signals to stop end the process by
    /// default.
    unattended: Arc<AtomicBool>,
    forced: Arc<AtomicBool>,
}

/// Signals that by default end a process, but are sent for other reasons: by operators and
/// logrotate, by timers of a program that was replaced by this one, for descriptors, and by the
/// kernel for a write beyond `RLIMIT_FSIZE`, which then fails. They are handled rather than
/// ignored, because a child would inherit an ignored signal through execve(2). Rust's runtime
/// ignores SIGPIPE. SIGVTALRM ends forked children.
const DISREGARDED: [i32; 6] = [SIGUSR1, SIGUSR2, SIGALRM, SIGIO, SIGPROF, SIGXFSZ];

impl Signals {
    /// Catches the signals. Signals to stop end the process at once until one of the methods below
    /// is called, because no server could act on them before.
    pub(crate) fn catch(reloads: bool) -> io::Result<Self> {
        for signal in DISREGARDED {
            flag::register(signal, Arc::default())?;
        }
        let unattended = Arc::new(AtomicBool::new(true));
        let (stops, handler) = UnixStream::pair()?;
        let stop = |signal| {
            flag::register_conditional_default(signal, unattended.clone())?;
            pipe::register(signal, handler.try_clone()?)
        };
        for signal in [SIGINT, SIGTERM, SIGQUIT] {
            stop(signal)?;
        }
        let (mut hangups, mut reopens) = (None, None);
        if reopen::has_any() {
            let (arrivals, handler) = UnixStream::pair()?;
            pipe::register(SIGUSR1, handler)?;
            reopens = Some(arrivals);
        }
        if reloads || reopens.is_some() {
            // A process that was started with SIGUSR1 ignored, as by nohup, is unaffected.
            let (arrivals, handler) = UnixStream::pair()?;
            pipe::register(SIGHUP, handler)?;
            hangups = Some(arrivals);
        } else if !is_hup_ignored() {
            // The terminal has closed.
            stop(SIGHUP)?;
        }
        Ok(Self {
            stops,
            hangups,
            reopens,
            unattended,
            forced: Arc::default(),
        })
    }

    /// Returns a flag that is set once a second signal has arrived.
    pub(crate) fn forced(&self) -> Arc<AtomicBool> {
        self.forced.clone()
    }

    /// Drains the servers of the group from a separate thread, which works even if a server is busy
    /// with a handler. Reloads the configuration from another thread.
    pub(crate) fn heed_in_threads(
        self,
        group: &ServerGroup,
        patience: ShutdownTimeouts,
        model: Model,
        reloader: Option<Reloader>,
    ) -> io::Result<()> {
        let hung_up = move || {
            reopen::all();
            if let Some(reloader) = &reloader {
                reloader.reload();
            }
        };
        attend("reload", self.hangups, hung_up)?;
        attend("reopen", self.reopens, reopen::all)?;
        let mut stop = Stop::new(self.forced, group, patience, model);
        let mut stops = self.stops;
        let wait_for_signals = move || {
            loop {
                let arrived = stops
                    .set_read_timeout(stop.lame_for())
                    .and_then(|()| stops.read(&mut [0; 16]));
                match arrived {
                    Ok(1..) if stop.signalled() == ShutdownRequest::ToForce => {
                        // A handler may block the serving thread itself.
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
            .spawn(wait_for_signals)?;
        self.unattended.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Handles signals in the accept loop, for a process that must not have threads.
    pub(crate) fn heed_in_loop(
        self,
        group: &mut ServerGroup,
        patience: ShutdownTimeouts,
        reloader: Option<Reloader>,
    ) -> io::Result<()> {
        if let Some(hangups) = self.hangups {
            watch(group, hangups, move || {
                reopen::all();
                if let Some(reloader) = &reloader {
                    reloader.reload();
                }
            })?;
        }
        if let Some(reopens) = self.reopens {
            watch(group, reopens, reopen::all)?;
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
                tracing::warn!(%error, "the lame-duck timer failed; draining at once");
                stop.lame_is_over();
            }
        })?;
        self.unattended.store(false, Ordering::SeqCst);
        Ok(())
    }
}

/// Calls `call` in a separate thread for each signal, or once for several signals that arrive
/// together.
fn attend(
    name: &str,
    arrivals: Option<UnixStream>,
    mut call: impl FnMut() + Send + 'static,
) -> io::Result<()> {
    let Some(mut arrivals) = arrivals else {
        return Ok(());
    };
    let wait_for_signals = move || {
        while let Ok(1..) = arrivals.read(&mut [0; 16]) {
            call();
        }
    };
    std::thread::Builder::new()
        .name(name.into())
        .spawn(wait_for_signals)
        .map(drop)
}

fn lock(stop: &Mutex<Stop>) -> MutexGuard<'_, Stop> {
    stop.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the timer to expire once.
fn set(timer: impl AsFd, after: Duration) -> io::Result<()> {
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(after).map_err(io::Error::other)?,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

/// Registers a callback in the accept loop for arrived signals.
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

/// Returns true if the parent process has set SIGHUP to be ignored, as nohup does.
fn is_hup_ignored() -> bool {
    is_ignored(SIGHUP)
}

/// Returns true if this process was started with a signal ignored: proc(5), `SigIgn`.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
