//! User code that the runtime calls: destructors, names, reports. If the code panics or waits, the
//! worker continues, and the suspended coroutines stay intact.

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

/// The time limit of every wait in these tests.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The action of user code at an unexpected point.
#[derive(Clone, Copy, Debug)]
enum Act {
    Panic,
    Suspend,
}

const BOTH: [Act; 2] = [Act::Panic, Act::Suspend];

impl Act {
    fn run(self) {
        match self {
            Self::Panic => panic!("from user code"),
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

/// A runtime with one worker, and a witness coroutine on it that is suspended in the middle of a
/// scope: threads of the scope see values on its stack, and its worker has thread-locals.
struct Fixture {
    runtime: Runtime,
    witness: greenroom::JoinHandle<usize>,
    end: greenroom::sync::Sender<()>,
}

impl Fixture {
    fn new() -> Self {
        Self::of(Runtime::builder().workers(1))
    }

    fn of(builder: greenroom::Builder) -> Self {
        thread_local! {
            static OWN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
        }
        let runtime = builder.build().unwrap();
        let (end, wait) = greenroom::sync::channel::<()>(1);
        let (tx, begun) = mpsc::channel();
        let witness = runtime
            .spawn(move || {
                OWN.with_borrow_mut(|own| own.extend(0..1000));
                let local = [7_usize; 100];
                std::thread::scope(|scope| {
                    scope.spawn(|| assert_eq!(local, [7; 100]));
                    tx.send(()).unwrap();
                    let _ = wait.recv();
                    scope.spawn(|| assert_eq!(local, [7; 100]));
                });
                OWN.with_borrow(|own| own.iter().sum())
            })
            .unwrap();
        begun.recv_timeout(TIMEOUT).unwrap();
        Self {
            runtime,
            witness,
            end,
        }
    }

    fn reserve(&self) -> SpawnPermit {
        self.runtime.reserve().unwrap()
    }

    /// Asserts that the worker still runs coroutines.
    fn assert_alive(&self) {
        let (tx, rx) = mpsc::channel();
        let answer = self.runtime.spawn(move || tx.send(()).unwrap()).unwrap();
        rx.recv_timeout(TIMEOUT).expect("the worker is gone");
        drop(answer);
    }

    /// Asserts that the worker still runs coroutines, that the witness completes with intact
    /// values, and that the runtime shuts down.
    fn assert_intact_until_shutdown(self) {
        self.assert_alive();
        drop(self.end);
        assert_eq!(self.witness.join().unwrap(), 499_500);
        assert!(self.runtime.shutdown(TIMEOUT));
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Occupies its worker, without yielding, until the condition holds.
fn keep_busy_until(condition: impl Fn() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !condition() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn count() -> Arc<AtomicUsize> {
    Arc::default()
}

fn wait_until_called(count: &AtomicUsize) {
    wait_until("the user's code was called", || {
        count.load(Ordering::SeqCst) > 0
    });
}

#[test]
fn destructor_of_a_name_may_panic_or_suspend() {
    for act in BOTH {
        let (fixture, dropped) = (Fixture::new(), count());
        let name: Arc<dyn Display + Send + Sync> = Arc::new(OnDrop(act, dropped.clone()));
        fixture.reserve().spawn_detached(name, || ());
        wait_until_called(&dropped);
        fixture.assert_intact_until_shutdown();
    }
}

/// The last owner drops the result: the coroutine, or the handle.
#[test]
fn destructor_of_a_result_may_panic_or_suspend_while_the_handle_is_dropped() {
    for act in BOTH {
        let (fixture, dropped) = (Fixture::new(), count());
        let end = Instant::now() + Duration::from_millis(250);
        let mut rounds = 0;
        while Instant::now() < end {
            let counter = dropped.clone();
            let handle = fixture.runtime.spawn(move || OnDrop(act, counter)).unwrap();
            rounds += 1;
            if rounds % 2 == 0 {
                while !handle.is_finished() {
                    assert!(Instant::now() < end + TIMEOUT, "the worker is gone");
                    std::hint::spin_loop();
                }
                (0..rounds / 2 % 64).for_each(|_| std::hint::spin_loop());
            }
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(handle)));
        }
        wait_until("every result is dropped", || {
            dropped.load(Ordering::SeqCst) == rounds
        });
        fixture.assert_intact_until_shutdown();
    }
}

#[test]
fn destructor_of_a_panic_payload_may_panic_or_suspend() {
    for act in BOTH {
        let (fixture, dropped) = (Fixture::new(), count());
        for n in 0..2 {
            let counter = dropped.clone();
            let run = move || panic_any(OnDrop(act, counter));
            match n {
                0 => fixture.reserve().spawn_detached("detached", run),
                _ => drop(fixture.runtime.spawn(run).unwrap()),
            }
        }
        wait_until("both are dropped", || dropped.load(Ordering::SeqCst) >= 2);
        fixture.assert_intact_until_shutdown();
    }
}

#[test]
fn destructor_of_a_captured_value_may_panic_or_suspend() {
    for act in BOTH {
        let (fixture, dropped) = (Fixture::new(), count());
        let captured = OnDrop(act, dropped.clone());
        fixture
            .reserve()
            .spawn_detached("task", move || drop(captured));
        wait_until_called(&dropped);
        fixture.assert_intact_until_shutdown();
    }
}

#[test]
fn display_of_a_name_in_a_stall_report_may_panic_or_suspend() {
    for act in BOTH {
        let reported = count();
        let counter = reported.clone();
        let builder = Runtime::builder().workers(1).on_stall(
            Duration::from_millis(10),
            move |stall: &greenroom::Stall| {
                if &*stall.name != "the next" {
                    counter.fetch_add(1, Ordering::SeqCst);
                } else {
                    counter.fetch_add(100, Ordering::SeqCst);
                }
            },
        );
        let (fixture, displayed) = (Fixture::of(builder), count());
        let name: Arc<dyn Display + Send + Sync> = Arc::new(OnDisplay(act, displayed.clone()));
        for (name, enough) in [(TaskName::from(name), 1), ("the next".into(), 100)] {
            let reported = reported.clone();
            let is_reported = move || reported.load(Ordering::SeqCst) >= enough;
            let ends = is_reported.clone();
            fixture
                .reserve()
                .spawn_detached(name, move || keep_busy_until(ends));
            wait_until("the stall is reported", is_reported);
        }
        wait_until_called(&displayed);
        fixture.assert_intact_until_shutdown();
    }
}

#[test]
fn stall_report_may_panic_or_suspend() {
    for act in BOTH {
        let reported = count();
        let counter = reported.clone();
        let builder = Runtime::builder().workers(1).on_stall(
            Duration::from_millis(10),
            move |_: &greenroom::Stall| {
                counter.fetch_add(1, Ordering::SeqCst);
                act.run();
            },
        );
        let fixture = Fixture::of(builder);
        for n in 1..=2 {
            let reported = reported.clone();
            let is_reported = move || reported.load(Ordering::SeqCst) >= n;
            let ends = is_reported.clone();
            fixture
                .reserve()
                .spawn_detached("task", move || keep_busy_until(ends));
            wait_until("the stall is reported", is_reported);
        }
        fixture.assert_intact_until_shutdown();
    }
}

#[test]
fn name_and_watch_of_when_ready_may_panic_or_suspend() {
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
        let fixture = Fixture::new();
        let run = move || {
            let (near, far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let value = Arc::new((Readiness::new(), near));
            let copy = value.clone();
            let soon = Some(Instant::now() + Duration::from_millis(20));
            // Another coroutine waits for the same descriptor.
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
        let _ = fixture.runtime.spawn(run).unwrap().join();
        fixture.assert_intact_until_shutdown();
    }
}

#[test]
fn destructor_of_the_value_of_when_ready_may_panic_or_suspend() {
    for act in BOTH {
        let (fixture, dropped) = (Fixture::new(), count());
        let counter = dropped.clone();
        let run = move || {
            let (near, far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let value = (Readiness::new(), near, OnDrop(act, counter));
            Readiness::when_ready(
                value,
                |value| (&value.0, value.1.as_fd()),
                Interest::Read,
                None,
                "task",
                |value, _| drop(value),
            );
            drop(far);
        };
        fixture.reserve().spawn_detached("task", run);
        wait_until_called(&dropped);
        fixture.assert_intact_until_shutdown();
    }
}

#[test]
fn destructor_of_a_value_in_a_channel_may_panic_or_suspend() {
    for act in BOTH {
        let (fixture, dropped) = (Fixture::new(), count());
        let counter = dropped.clone();
        let run = move || {
            let (sender, receiver) = greenroom::sync::channel(4);
            for _ in 0..3 {
                let value = OnDrop(act, counter.clone());
                assert!(sender.send(value).is_ok());
            }
            let other = sender.clone();
            let waiting = spawn(move || other.is_closed()).unwrap();
            drop(receiver);
            waiting.join().unwrap();
        };
        let _ = fixture.runtime.spawn(run).unwrap().join();
        wait_until_called(&dropped);
        fixture.assert_intact_until_shutdown();
    }
}

#[test]
fn poll_and_destructor_of_a_future_may_panic_or_suspend() {
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
        let (fixture, dropped) = (Fixture::new(), count());
        let future = Pending(act, false, OnDrop(act, dropped.clone()));
        let run = move || greenroom::block_on(future);
        let _ = fixture.runtime.spawn(run).unwrap().join();
        wait_until_called(&dropped);
        fixture.assert_intact_until_shutdown();
    }
}

/// On a thread for blocking calls: captured values, and results that no caller takes.
#[test]
fn destructors_of_a_blocking_call_may_panic_or_suspend() {
    for act in BOTH {
        let (fixture, dropped) = (Fixture::new(), count());
        for _ in 0..3 {
            let (captured, result) = (OnDrop(act, dropped.clone()), dropped.clone());
            let run = move || {
                greenroom::unblock(move || {
                    let _ = &captured;
                    OnDrop(act, result)
                })
            };
            drop(fixture.runtime.spawn(run).unwrap());
        }
        wait_until("all are dropped", || dropped.load(Ordering::SeqCst) >= 3);
        fixture.assert_intact_until_shutdown();
    }
}

/// A worker's thread ends, and drops the thread-locals that coroutines have set.
#[test]
fn destructors_of_thread_locals_wait_like_threads() {
    thread_local! {
        static SLOT: RefCell<Option<OnDrop>> = const { RefCell::new(None) };
    }
    let (fixture, dropped) = (Fixture::new(), count());
    let value = OnDrop(Act::Suspend, dropped.clone());
    let run = move || SLOT.set(Some(value));
    fixture.runtime.spawn(run).unwrap().join().unwrap();
    fixture.assert_intact_until_shutdown();
    wait_until_called(&dropped);
}
