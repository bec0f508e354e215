//! Code of the user's that the engine calls by itself: destructors, names, reports. Wherever it
//! panics or waits, the worker goes on, and the coroutines that are suspended meanwhile stay whole.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::panic_any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use greenroom::{Interest, Readiness, Runtime, SpawnPermit, TaskName, sleep, spawn, yield_now};

/// Nothing here takes as long as this unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What code of the user's does where nothing of the kind is expected.
#[derive(Clone, Copy, Debug)]
enum Act {
    Panic,
    Suspend,
}

const BOTH: [Act; 2] = [Act::Panic, Act::Suspend];

impl Act {
    fn run(self) {
        match self {
            Self::Panic => panic!("from the user's code"),
            Self::Suspend => {
                yield_now();
                sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Acts when it is dropped.
struct OnDrop(Act, Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
        if !std::thread::panicking() {
            self.0.run();
        }
    }
}

impl Display for OnDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("on drop")
    }
}

/// Acts when it is displayed.
struct OnDisplay(Act, Arc<AtomicUsize>);

impl Display for OnDisplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.run();
        f.write_str("displayed")
    }
}

/// An engine with one worker, and a coroutine on it that is suspended in the middle of a scope: its
/// threads see what it has on its stack, and its worker has thread-locals.
struct Stage {
    engine: Runtime,
    witness: greenroom::JoinHandle<usize>,
    end: greenroom::sync::Sender<()>,
}

impl Stage {
    fn new() -> Self {
        Self::of(Runtime::builder().workers(1))
    }

    fn of(builder: greenroom::Builder) -> Self {
        thread_local! {
            static OWN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
        }
        let engine = builder.build().unwrap();
        let (end, wait) = greenroom::sync::channel::<()>(1);
        let (tell, begun) = mpsc::channel();
        let witness = engine
            .spawn(move || {
                OWN.with_borrow_mut(|own| own.extend(0..1000));
                let local = [7_usize; 100];
                std::thread::scope(|scope| {
                    scope.spawn(|| assert_eq!(local, [7; 100]));
                    tell.send(()).unwrap();
                    let _ = wait.recv();
                    scope.spawn(|| assert_eq!(local, [7; 100]));
                });
                OWN.with_borrow(|own| own.iter().sum())
            })
            .unwrap();
        begun.recv_timeout(PATIENCE).unwrap();
        Self {
            engine,
            witness,
            end,
        }
    }

    fn reserve(&self) -> SpawnPermit {
        self.engine.reserve().unwrap()
    }

    /// The worker still serves.
    fn is_alive(&self) {
        let (tell, told) = mpsc::channel();
        let answer = self.engine.spawn(move || tell.send(()).unwrap()).unwrap();
        told.recv_timeout(PATIENCE).expect("the worker is gone");
        drop(answer);
    }

    /// It does, and so does the coroutine that was suspended all the time. The engine ends.
    fn ends_whole(self) {
        self.is_alive();
        drop(self.end);
        assert_eq!(self.witness.join().unwrap(), 499_500);
        assert!(self.engine.shutdown(PATIENCE));
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Keeps its worker, without giving way, until something is so.
fn keep_busy_until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn count() -> Arc<AtomicUsize> {
    Arc::default()
}

fn was_called(count: &AtomicUsize) {
    until("the user's code was called", || {
        count.load(Ordering::SeqCst) > 0
    });
}

#[test]
fn dropping_a_name() {
    for act in BOTH {
        let (stage, dropped) = (Stage::new(), count());
        let name: Arc<dyn Display + Send + Sync> = Arc::new(OnDrop(act, dropped.clone()));
        stage.reserve().spawn_detached(name, || ());
        was_called(&dropped);
        stage.ends_whole();
    }
}

/// Whoever comes last drops the result: the coroutine, or the handle.
#[test]
fn dropping_a_result_while_the_handle_goes() {
    for act in BOTH {
        let (stage, dropped) = (Stage::new(), count());
        let end = Instant::now() + Duration::from_millis(250);
        let mut rounds = 0;
        while Instant::now() < end {
            let theirs = dropped.clone();
            let handle = stage.engine.spawn(move || OnDrop(act, theirs)).unwrap();
            rounds += 1;
            if rounds % 2 == 0 {
                while !handle.is_finished() {
                    assert!(Instant::now() < end + PATIENCE, "the worker is gone");
                    std::hint::spin_loop();
                }
                (0..rounds / 2 % 64).for_each(|_| std::hint::spin_loop());
            }
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(handle)));
        }
        until("every result is dropped", || {
            dropped.load(Ordering::SeqCst) == rounds
        });
        stage.ends_whole();
    }
}

#[test]
fn dropping_the_payload_of_a_panic() {
    for act in BOTH {
        let (stage, dropped) = (Stage::new(), count());
        for n in 0..2 {
            let theirs = dropped.clone();
            let run = move || panic_any(OnDrop(act, theirs));
            match n {
                0 => stage.reserve().spawn_detached("detached", run),
                _ => drop(stage.engine.spawn(run).unwrap()),
            }
        }
        until("both are dropped", || dropped.load(Ordering::SeqCst) >= 2);
        stage.ends_whole();
    }
}

#[test]
fn dropping_what_a_closure_has_captured() {
    for act in BOTH {
        let (stage, dropped) = (Stage::new(), count());
        let captured = OnDrop(act, dropped.clone());
        stage.reserve().spawn_detached("it", move || drop(captured));
        was_called(&dropped);
        stage.ends_whole();
    }
}

#[test]
fn displaying_a_name_in_a_report_of_a_stall() {
    for act in BOTH {
        let reported = count();
        let theirs = reported.clone();
        let builder = Runtime::builder().workers(1).on_stall(
            Duration::from_millis(10),
            move |stall: &greenroom::Stall| {
                if &*stall.name != "the next" {
                    theirs.fetch_add(1, Ordering::SeqCst);
                } else {
                    theirs.fetch_add(100, Ordering::SeqCst);
                }
            },
        );
        let (stage, displayed) = (Stage::of(builder), count());
        let name: Arc<dyn Display + Send + Sync> = Arc::new(OnDisplay(act, displayed.clone()));
        for (name, enough) in [(TaskName::from(name), 1), ("the next".into(), 100)] {
            let reported = reported.clone();
            let told = move || reported.load(Ordering::SeqCst) >= enough;
            let ends = told.clone();
            stage
                .reserve()
                .spawn_detached(name, move || keep_busy_until(ends));
            until("it is told", told);
        }
        was_called(&displayed);
        stage.ends_whole();
    }
}

#[test]
fn reporting_a_stall() {
    for act in BOTH {
        let reported = count();
        let theirs = reported.clone();
        let builder = Runtime::builder().workers(1).on_stall(
            Duration::from_millis(10),
            move |_: &greenroom::Stall| {
                theirs.fetch_add(1, Ordering::SeqCst);
                act.run();
            },
        );
        let stage = Stage::of(builder);
        for n in 1..=2 {
            let reported = reported.clone();
            let told = move || reported.load(Ordering::SeqCst) >= n;
            let ends = told.clone();
            stage
                .reserve()
                .spawn_detached("it", move || keep_busy_until(ends));
            until("it is reported", told);
        }
        stage.ends_whole();
    }
}

#[test]
fn making_the_name_of_a_pause_and_choosing_what_it_waits_for() {
    struct Named(Option<Act>);
    impl From<Named> for TaskName {
        fn from(named: Named) -> Self {
            if let Some(act) = named.0 {
                act.run();
            }
            "named".into()
        }
    }
    for (act, in_watch) in BOTH.into_iter().flat_map(|act| [(act, true), (act, false)]) {
        let stage = Stage::new();
        let run = move || {
            let (near, far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let value = Arc::new((Readiness::new(), near));
            let copy = value.clone();
            let soon = Some(Instant::now() + Duration::from_millis(20));
            // Another one looks at the same descriptor meanwhile.
            let other = move || drop(copy.0.wait(copy.1.as_fd(), Interest::Read, soon));
            let other = spawn(other).unwrap();
            Readiness::when_ready(
                value,
                |value| {
                    if in_watch {
                        act.run();
                    }
                    (&value.0, value.1.as_fd())
                },
                Interest::Read,
                soon,
                Named((!in_watch).then_some(act)),
                |_, _| (),
            );
            other.join().unwrap();
            drop(far);
        };
        let _ = stage.engine.spawn(run).unwrap().join();
        stage.ends_whole();
    }
}

#[test]
fn what_a_pause_runs_and_drops() {
    for act in BOTH {
        let (stage, dropped) = (Stage::new(), count());
        let theirs = dropped.clone();
        let run = move || {
            let (near, far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let value = (Readiness::new(), near, OnDrop(act, theirs));
            Readiness::when_ready(
                value,
                |value| (&value.0, value.1.as_fd()),
                Interest::Read,
                None,
                "it",
                |value, _| drop(value),
            );
            drop(far);
        };
        stage.reserve().spawn_detached("it", run);
        was_called(&dropped);
        stage.ends_whole();
    }
}

#[test]
fn dropping_what_is_left_in_a_channel() {
    for act in BOTH {
        let (stage, dropped) = (Stage::new(), count());
        let theirs = dropped.clone();
        let run = move || {
            let (sender, receiver) = greenroom::sync::channel(4);
            for _ in 0..3 {
                let value = OnDrop(act, theirs.clone());
                assert!(sender.send(value).is_ok());
            }
            let other = sender.clone();
            let waiting = spawn(move || other.is_closed()).unwrap();
            drop(receiver);
            waiting.join().unwrap();
        };
        let _ = stage.engine.spawn(run).unwrap().join();
        was_called(&dropped);
        stage.ends_whole();
    }
}

#[test]
fn polling_and_dropping_a_future() {
    struct Pending(Act, bool, #[expect(dead_code)] OnDrop);
    impl Future for Pending {
        type Output = ();
        fn poll(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<()> {
            if std::mem::replace(&mut self.1, true) {
                self.0.run();
                return std::task::Poll::Ready(());
            }
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        }
    }
    for act in BOTH {
        let (stage, dropped) = (Stage::new(), count());
        let future = Pending(act, false, OnDrop(act, dropped.clone()));
        let run = move || greenroom::block_on(future);
        let _ = stage.engine.spawn(run).unwrap().join();
        was_called(&dropped);
        stage.ends_whole();
    }
}

/// On a thread for blocking calls: what a call has captured, and what nobody takes.
#[test]
fn dropping_what_a_blocking_call_leaves() {
    for act in BOTH {
        let (stage, dropped) = (Stage::new(), count());
        for _ in 0..3 {
            let (captured, result) = (OnDrop(act, dropped.clone()), dropped.clone());
            let run = move || {
                greenroom::unblock(move || {
                    let _ = &captured;
                    OnDrop(act, result)
                })
            };
            drop(stage.engine.spawn(run).unwrap());
        }
        until("all are dropped", || dropped.load(Ordering::SeqCst) >= 3);
        stage.ends_whole();
    }
}

/// A worker's thread ends, and with it what coroutines have left in it.
#[test]
fn destructors_of_thread_locals_wait_like_threads() {
    thread_local! {
        static LEFT: RefCell<Option<OnDrop>> = const { RefCell::new(None) };
    }
    let (stage, dropped) = (Stage::new(), count());
    let left = OnDrop(Act::Suspend, dropped.clone());
    let run = move || LEFT.set(Some(left));
    stage.engine.spawn(run).unwrap().join().unwrap();
    stage.ends_whole();
    was_called(&dropped);
}
