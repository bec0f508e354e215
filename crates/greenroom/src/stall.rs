//! Detects coroutines that occupy their worker for too long.
//!
//! A monitor thread checks every worker once per period while at least one worker is awake. It
//! sleeps while the runtime is idle.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::join::{catch_panic, drop_catching_panic};
use crate::task_name::TaskName;
use crate::worker::WorkerHandle;

/// A report of a coroutine that has not yielded for too long; see
/// [`Builder::on_stall`](crate::Builder::on_stall).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stall {
    /// The name of the coroutine.
    pub name: Arc<str>,
    /// The number of the worker, from 0.
    pub worker: usize,
    /// The time for which the coroutine has been running, at least.
    pub duration: Duration,
}

pub(crate) type OnStall = Box<dyn Fn(&Stall) + Send>;

/// The side of the monitor that the workers see.
pub(crate) struct Monitor {
    asleep: AtomicBool,
    thread: Thread,
}

impl Monitor {
    /// Starts a thread that checks the workers until they are gone.
    pub(crate) fn start(
        workers: &[Arc<WorkerHandle>],
        threshold: Duration,
        report: OnStall,
    ) -> io::Result<Arc<Self>> {
        let workers: Vec<_> = workers.iter().map(Arc::downgrade).collect();
        let (give, take) = std::sync::mpsc::channel::<Arc<Self>>();
        let thread = thread::Builder::new()
            .name("stall monitor".into())
            .spawn(move || {
                if let Ok(monitor) = take.recv() {
                    watch(
                        &Arc::downgrade(&monitor),
                        monitor,
                        &workers,
                        threshold,
                        &report,
                    );
                }
                drop_catching_panic(report);
            })?;
        let monitor = Arc::new(Self {
            asleep: AtomicBool::new(false),
            thread: thread.thread().clone(),
        });
        let _ = give.send(monitor.clone());
        Ok(monitor)
    }

    /// Wakes the monitor because a worker has woken up.
    pub(crate) fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.thread.unpark();
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

/// The last observation of a worker: its switch number, when that was first seen, and whether it
/// was reported.
type Seen = Option<(u64, Instant, bool)>;

fn watch(
    monitor: &Weak<Monitor>,
    first: Arc<Monitor>,
    workers: &[Weak<WorkerHandle>],
    threshold: Duration,
    report: &OnStall,
) {
    drop(first);
    let mut seen: Vec<Seen> = vec![None; workers.len()];
    loop {
        thread::park_timeout(threshold);
        let mut alive = false;
        let mut awake = false;
        for (worker, (handle, seen)) in workers.iter().zip(&mut seen).enumerate() {
            let Some(handle) = handle.upgrade() else {
                continue;
            };
            alive = true;
            awake |= !handle.is_asleep();
            check(worker, &handle, seen, threshold, report);
        }
        let Some(monitor) = monitor.upgrade().filter(|_| alive) else {
            return;
        };
        if !awake {
            monitor.asleep.store(true, Ordering::SeqCst);
            // Checked again: a worker may have woken up before it could see that the monitor
            // sleeps.
            let woken =
                |handle: &Weak<WorkerHandle>| handle.upgrade().is_some_and(|r| !r.is_asleep());
            if workers.iter().any(woken) {
                monitor.asleep.store(false, Ordering::SeqCst);
                continue;
            }
            let asleep = monitor;
            let weak = Arc::downgrade(&asleep);
            drop(asleep);
            while weak
                .upgrade()
                .is_some_and(|m| m.asleep.load(Ordering::SeqCst))
            {
                thread::park();
            }
        }
    }
}

fn check(
    worker: usize,
    handle: &WorkerHandle,
    seen: &mut Seen,
    threshold: Duration,
    report: &OnStall,
) {
    let Some((switch, name)) = handle.running() else {
        *seen = None;
        return;
    };
    match seen {
        Some((same, since, reported)) if *same == switch => {
            let duration = since.elapsed();
            if duration >= threshold && !std::mem::replace(reported, true) {
                let stall = Stall {
                    name: to_text(name.as_ref()),
                    worker,
                    duration,
                };
                catch_panic(|| report(&stall));
            }
        }
        _ => *seen = Some((switch, Instant::now(), false)),
    }
    // The coroutine may have ended since: then this is the last reference to the name.
    drop_catching_panic(name);
}

/// Formats the name, and catches panics of the user's formatting code.
fn to_text(name: Option<&TaskName>) -> Arc<str> {
    match name {
        Some(name) => {
            catch_panic(|| name.to_text()).map_or("(a name that panics)".into(), Arc::from)
        }
        None => "(a coroutine that is about to end)".into(),
    }
}
