//! Finds coroutines that keep their worker to themselves.
//!
//! A monitoring thread looks at every worker once per period, for as long as any of them is awake:
//! an engine that has nothing to do is not looked at either.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::join::{drop_catching_panic, quietly};
use crate::task_name::TaskName;
use crate::worker::WorkerHandle;

/// A coroutine that has not given way for too long; see
/// [`Builder::on_stall`](crate::Builder::on_stall).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stall {
    /// The name of the coroutine.
    pub name: Arc<str>,
    /// The number of the worker, from 0.
    pub worker: usize,
    /// For how long at least it has been running.
    pub duration: Duration,
}

pub(crate) type OnStall = Box<dyn Fn(&Stall) + Send>;

/// The workers' side of it.
pub(crate) struct Monitor {
    asleep: AtomicBool,
    thread: Thread,
}

impl Monitor {
    /// Starts to look at these workers, until they are gone.
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

    /// A worker has woken up.
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

/// What was seen of a worker: which switch, and when first.
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
            look(worker, &handle, seen, threshold, report);
        }
        let Some(monitor) = monitor.upgrade().filter(|_| alive) else {
            return;
        };
        if !awake {
            monitor.asleep.store(true, Ordering::SeqCst);
            // Looked at again: one may have woken up before it could see that we sleep.
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

fn look(
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
        Some((same, since, told)) if *same == switch => {
            let duration = since.elapsed();
            if duration >= threshold && !std::mem::replace(told, true) {
                let stall = Stall {
                    name: put(name.as_ref()),
                    worker,
                    duration,
                };
                quietly(|| report(&stall));
            }
        }
        _ => *seen = Some((switch, Instant::now(), false)),
    }
    // The coroutine may have ended meanwhile: then this is the last one.
    drop_catching_panic(name);
}

/// In words, whatever the user's code does with them.
fn put(name: Option<&TaskName>) -> Arc<str> {
    match name {
        Some(name) => quietly(|| name.put()).map_or("(a name that panics)".into(), Arc::from),
        None => "(a coroutine that is about to end)".into(),
    }
}
