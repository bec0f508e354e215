//! Coroutines: start, join, panic, exhaustion of stacks, shutdown.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use greenroom::{GuardPages, Runtime, SpawnError, sleep, sleep_until, spawn, yield_now};

/// The time limit of every wait in these tests.
const TIMEOUT: Duration = Duration::from_secs(20);

fn one_worker() -> Runtime {
    Runtime::builder().workers(1).build().unwrap()
}

/// Runs `run` in a coroutine of a runtime with one worker, and propagates its panic.
fn in_coroutine<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    match one_worker().spawn(run).unwrap().join() {
        Ok(value) => value,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

#[test]
fn join_returns_results_and_panics() {
    let runtime = Runtime::new().unwrap();
    assert_eq!(runtime.spawn(|| "fine").unwrap().join().unwrap(), "fine");
    let payload = runtime
        .spawn(|| panic!("not {}", std::hint::black_box("fine")))
        .unwrap()
        .join()
        .unwrap_err();
    assert_eq!(payload.downcast_ref::<String>().unwrap(), "not fine");
    // The same in a coroutine; the worker continues.
    let nested = runtime.spawn(|| spawn(|| panic!("inner")).unwrap().join().is_err());
    assert!(nested.unwrap().join().unwrap());
    assert_eq!(runtime.spawn(|| 1).unwrap().join().unwrap(), 1);
}

#[test]
fn panic_unwinds_all_nested_calls() {
    struct Count(Arc<AtomicUsize>);
    impl Drop for Count {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    fn descend(depth: usize, dropped: &Arc<AtomicUsize>) {
        let _count = Count(dropped.clone());
        assert!(depth > 0, "bottom");
        yield_now();
        descend(depth - 1, dropped);
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let theirs = dropped.clone();
    let runtime = one_worker();
    assert!(
        runtime
            .spawn(move || descend(50, &theirs))
            .unwrap()
            .join()
            .is_err()
    );
    assert_eq!(dropped.load(Ordering::SeqCst), 51);
}

#[test]
fn coroutines_of_a_worker_share_values_that_are_not_send() {
    let total = in_coroutine(|| {
        let total = Rc::new(Cell::new(0));
        let all: Vec<_> = (0..100)
            .map(|_| {
                let total = total.clone();
                spawn(move || {
                    for _ in 0..10 {
                        total.set(total.get() + 1);
                        yield_now();
                    }
                })
                .unwrap()
            })
            .collect();
        all.into_iter().for_each(|one| one.join().unwrap());
        total.get()
    });
    assert_eq!(total, 1000);
}

#[test]
fn coroutine_stays_on_its_thread() {
    let runtime = Runtime::builder().workers(4).build().unwrap();
    let all: Vec<_> = (0..100)
        .map(|n| {
            runtime
                .spawn(move || {
                    let home = std::thread::current().id();
                    for _ in 0..20 {
                        sleep(Duration::from_micros(100 + n));
                        assert_eq!(std::thread::current().id(), home);
                    }
                    home
                })
                .unwrap()
        })
        .collect();
    let mut homes: Vec<_> = all.into_iter().map(|one| one.join().unwrap()).collect();
    homes.sort_by_key(|id| format!("{id:?}"));
    homes.dedup();
    assert_eq!(homes.len(), 4, "the coroutines are spread over all workers");
}

#[test]
fn sleepers_wake_at_their_deadlines_in_order() {
    let (tx, rx) = mpsc::channel();
    let asleep = in_coroutine(move || {
        // From a common start, so that the time until a coroutine begins does not matter.
        let start = Instant::now() + Duration::from_millis(200);
        let sleepers: Vec<_> = [80, 20, 50, 0, 1]
            .into_iter()
            .map(|ms| {
                let tx = tx.clone();
                spawn(move || {
                    let deadline = start + Duration::from_millis(ms);
                    sleep_until(deadline);
                    assert!(Instant::now() >= deadline);
                    tx.send(ms).unwrap();
                })
                .unwrap()
            })
            .collect();
        let before = Instant::now();
        sleep(Duration::from_millis(30));
        let asleep = before.elapsed();
        sleepers.into_iter().for_each(|one| one.join().unwrap());
        asleep
    });
    let order: Vec<_> = rx.try_iter().collect();
    assert_eq!(order, [0, 1, 20, 50, 80]);
    assert!(asleep >= Duration::from_millis(30));
}

#[test]
fn running_out_of_stacks_is_an_error_until_a_stack_is_free() {
    let runtime = Runtime::builder()
        .workers(1)
        .max_coroutines(3)
        .build()
        .unwrap();
    let (release, wait) = greenroom::sync::channel::<()>(1);
    let held: Vec<_> = (0..3)
        .map(|_| {
            let wait = wait.clone();
            runtime.spawn(move || wait.recv()).unwrap()
        })
        .collect();
    let error = runtime.spawn(|| ()).unwrap_err();
    assert!(matches!(error, SpawnError { in_use: 3, .. }));
    assert!(error.to_string().contains("max_coroutines"));
    drop(release);
    for one in held {
        assert!(one.join().unwrap().is_err());
    }
    // A stack is free again a moment after its coroutine was joined.
    let all_back = || {
        let end = Instant::now() + TIMEOUT;
        while runtime.counters().stacks_in_use > 0 {
            assert!(Instant::now() < end, "the stacks are not released");
            std::thread::yield_now();
        }
    };
    all_back();
    assert_eq!(runtime.spawn(|| 5).unwrap().join().unwrap(), 5);
    all_back();
    let permit = runtime.reserve().unwrap();
    assert_eq!(runtime.counters().stacks_in_use, 1);
    drop(permit);
    assert_eq!(runtime.counters().stacks_in_use, 0);
}

#[test]
fn thousands_of_coroutines_run_under_both_kinds_of_guard() {
    for guards in [GuardPages::Auto, GuardPages::Mprotect] {
        let runtime = Runtime::builder()
            .workers(2)
            .stack_size(64 << 10)
            .guard_pages(guards)
            .build()
            .unwrap();
        for _ in 0..3 {
            let all: Vec<_> = (0..5000)
                .map(|n| {
                    runtime
                        .spawn(move || {
                            yield_now();
                            n
                        })
                        .unwrap()
                })
                .collect();
            let sum: usize = all.into_iter().map(|one| one.join().unwrap()).sum();
            assert_eq!(sum, 5000 * 4999 / 2);
        }
    }
}

#[test]
fn large_frames_and_recursion_fit_into_a_large_stack() {
    fn deep(depth: usize) -> usize {
        let frame = std::hint::black_box([depth; 32]);
        if depth == 0 {
            0
        } else {
            deep(depth - 1) + frame[31].min(1)
        }
    }
    let runtime = Runtime::builder()
        .workers(1)
        .stack_size(1 << 20)
        .build()
        .unwrap();
    assert_eq!(runtime.spawn(|| deep(500)).unwrap().join().unwrap(), 500);
    let large = runtime.spawn(|| {
        let buffer = std::hint::black_box([1_u8; 64 << 10]);
        yield_now();
        buffer.iter().map(|&b| usize::from(b)).sum::<usize>()
    });
    assert_eq!(large.unwrap().join().unwrap(), 64 << 10);
}

#[test]
fn unblock_lets_other_coroutines_run() {
    let order = in_coroutine(|| {
        let (tx, rx) = greenroom::sync::channel(4);
        let theirs = tx.clone();
        let (release, blocked) = mpsc::channel::<()>();
        let slow = spawn(move || {
            // Blocks its thread until the other coroutine has run, which needs the worker.
            greenroom::unblock(move || blocked.recv_timeout(TIMEOUT).unwrap());
            theirs.send("slow").unwrap();
        })
        .unwrap();
        spawn(move || {
            tx.send("fast").unwrap();
            release.send(()).unwrap();
        })
        .unwrap()
        .join()
        .unwrap();
        slow.join().unwrap();
        rx.iter().collect::<Vec<_>>()
    });
    assert_eq!(order, ["fast", "slow"]);
    let panicked = one_worker()
        .spawn(|| greenroom::unblock(|| panic!("inside")))
        .unwrap()
        .join();
    assert!(panicked.is_err());
}

#[test]
fn block_on_returns_the_output_of_a_future() {
    assert_eq!(in_coroutine(|| greenroom::block_on(async { 7 })), 7);
    // A future that another thread completes.
    struct Later(Arc<std::sync::Mutex<(bool, Option<std::task::Waker>)>>);
    impl Future for Later {
        type Output = ();
        fn poll(
            self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<()> {
            let mut state = self.0.lock().unwrap();
            if state.0 {
                return std::task::Poll::Ready(());
            }
            state.1 = Some(context.waker().clone());
            std::task::Poll::Pending
        }
    }
    for outside in [false, true] {
        let state = Arc::new(std::sync::Mutex::new((false, None::<std::task::Waker>)));
        let theirs = state.clone();
        let waker = std::thread::spawn(move || {
            let end = Instant::now() + TIMEOUT;
            while Instant::now() < end {
                let mut state = theirs.lock().unwrap();
                if let Some(waker) = state.1.take() {
                    state.0 = true;
                    waker.wake();
                    return;
                }
            }
            panic!("never polled");
        });
        let later = Later(state);
        if outside {
            greenroom::block_on(later);
        } else {
            in_coroutine(move || greenroom::block_on(later));
        }
        waker.join().unwrap();
    }
}

#[test]
fn panicking_coroutine_cannot_wait_and_other_coroutines_do_not_panic() {
    struct Waits(mpsc::Sender<Duration>);
    impl Drop for Waits {
        fn drop(&mut self) {
            let before = Instant::now();
            sleep(Duration::from_secs(60));
            yield_now();
            self.0.send(before.elapsed()).unwrap();
        }
    }
    let runtime = one_worker();
    let observer = runtime.spawn(|| {
        for _ in 0..1000 {
            assert!(!std::thread::panicking());
            yield_now();
        }
    });
    let (tx, rx) = mpsc::channel();
    let panicking = runtime.spawn(move || {
        let _waits = Waits(tx);
        panic!("while others run");
    });
    assert!(panicking.unwrap().join().is_err());
    assert!(rx.recv_timeout(TIMEOUT).unwrap() < TIMEOUT);
    observer.unwrap().join().unwrap();
}

#[test]
fn dropping_the_runtime_lets_coroutines_finish() {
    let (tx, rx) = mpsc::channel();
    let runtime = one_worker();
    let handle = runtime
        .spawn(move || {
            sleep(Duration::from_millis(50));
            tx.send("finished").unwrap();
        })
        .unwrap();
    drop(runtime);
    assert_eq!(rx.recv_timeout(TIMEOUT).unwrap(), "finished");
    handle.join().unwrap();
}

#[test]
fn shutdown_returns_at_its_deadline_or_after_the_last_coroutine() {
    let runtime = one_worker();
    let (release, wait) = greenroom::sync::channel::<()>(1);
    let blocked = runtime.spawn(move || wait.recv().is_err()).unwrap();
    assert!(!runtime.shutdown(Duration::from_millis(20)));
    drop(release);
    assert!(runtime.shutdown(TIMEOUT));
    blocked.join().unwrap();
    // No coroutine runs any more, and a new one fails with an error.
    let late = runtime.spawn(|| ()).unwrap();
    assert!(late.join().is_err());
}

#[test]
fn idle_runtime_does_not_switch() {
    let runtime = one_worker();
    runtime.spawn(|| ()).unwrap().join().unwrap();
    let parked = runtime.spawn(|| sleep(Duration::from_millis(200))).unwrap();
    // Waits until the coroutine sleeps.
    let end = Instant::now() + TIMEOUT;
    while runtime.counters().switches < 2 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    let before = runtime.counters();
    parked.join().unwrap();
    let after = runtime.counters();
    assert_eq!(
        after.switches - before.switches,
        1,
        "one switch, at the end of the coroutine"
    );
}

#[test]
fn stall_is_reported_once_while_it_lasts() {
    let (tx, rx) = mpsc::channel();
    let runtime = Runtime::builder()
        .workers(1)
        .on_stall(Duration::from_millis(20), move |stall| {
            tx.send(stall.clone()).unwrap();
        })
        .build()
        .unwrap();
    // A coroutine that yields is not reported.
    runtime
        .spawn(|| sleep(Duration::from_millis(60)))
        .unwrap()
        .join()
        .unwrap();
    assert!(rx.try_recv().is_err());
    let (release, released) = mpsc::channel::<()>();
    let stuck = runtime.reserve().unwrap().spawn("the stuck one", move || {
        released.recv_timeout(TIMEOUT).unwrap();
    });
    let stall = rx.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(&*stall.name, "the stuck one");
    assert!(stall.duration >= Duration::from_millis(20));
    release.send(()).unwrap();
    stuck.join().unwrap();
    assert!(rx.try_recv().is_err(), "reported more than once");
}

#[test]
fn forgotten_handles_and_permits_are_harmless() {
    let runtime = one_worker();
    std::mem::forget(runtime.spawn(|| vec![1, 2, 3]).unwrap());
    std::mem::forget(runtime.reserve().unwrap());
    assert_eq!(runtime.spawn(|| 1).unwrap().join().unwrap(), 1);
}

#[test]
fn spawn_outside_of_the_runtime_panics_with_advice() {
    let payload = std::panic::catch_unwind(|| spawn(|| ())).unwrap_err();
    assert!(
        payload
            .downcast_ref::<&str>()
            .unwrap()
            .contains("Runtime::spawn")
    );
}

#[test]
fn block_on_runs_a_future_of_tokio_with_its_handle() {
    let tokio_runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let handle = tokio_runtime.handle().clone();
    let elapsed = in_coroutine(move || {
        greenroom::block_on(async {
            let sleeping = handle.spawn(async {
                let before = Instant::now();
                tokio::time::sleep(Duration::from_millis(20)).await;
                before.elapsed()
            });
            sleeping.await.unwrap()
        })
    });
    assert!(elapsed >= Duration::from_millis(20));
}

#[test]
fn coroutines_that_have_begun_go_on_before_new_ones_begin() {
    const NEW: usize = 50;
    let engine = one_worker();
    let (turns, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (own, others) = (turns.clone(), begun.clone());
    let (tell, told) = mpsc::channel::<()>();
    let older = engine.spawn(move || {
        // The new ones are handed over meanwhile, so that all of them are there.
        told.recv().unwrap();
        while others.load(Ordering::SeqCst) < NEW {
            own.fetch_add(1, Ordering::SeqCst);
            yield_now();
        }
    });
    let new: Vec<_> = (0..NEW)
        .map(|_| {
            let begun = begun.clone();
            engine.spawn(move || {
                std::thread::sleep(Duration::from_millis(2));
                begun.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    tell.send(()).unwrap();
    new.into_iter().for_each(|one| one.unwrap().join().unwrap());
    older.unwrap().join().unwrap();
    let turns = turns.load(Ordering::SeqCst);
    assert!(
        turns >= NEW / 2,
        "one turn for all of {NEW} that are new: {turns}"
    );
}
