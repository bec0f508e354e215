//! Coroutines: starting, waiting for each other, panicking, running out, coming to an end.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use greenroom::{GuardPages, Runtime, SpawnError, sleep, sleep_until, spawn, yield_now};

/// Nothing here takes as long as this unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

fn one_worker() -> Runtime {
    Runtime::builder().workers(1).build().unwrap()
}

/// Runs something in a coroutine of an engine with one worker, and hands on its panic.
fn in_coroutine<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    match one_worker().spawn(run).unwrap().join() {
        Ok(value) => value,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

#[test]
fn results_and_panics_reach_whoever_joins() {
    let engine = Runtime::new().unwrap();
    assert_eq!(engine.spawn(|| "fine").unwrap().join().unwrap(), "fine");
    let payload = engine
        .spawn(|| panic!("not {}", std::hint::black_box("fine")))
        .unwrap()
        .join()
        .unwrap_err();
    assert_eq!(payload.downcast_ref::<String>().unwrap(), "not fine");
    // In a coroutine as well, and the worker goes on.
    let nested = engine.spawn(|| spawn(|| panic!("inner")).unwrap().join().is_err());
    assert!(nested.unwrap().join().unwrap());
    assert_eq!(engine.spawn(|| 1).unwrap().join().unwrap(), 1);
}

#[test]
fn a_panic_in_nested_calls_unwinds_all_of_them() {
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
    let engine = one_worker();
    assert!(
        engine
            .spawn(move || descend(50, &theirs))
            .unwrap()
            .join()
            .is_err()
    );
    assert_eq!(dropped.load(Ordering::SeqCst), 51);
}

#[test]
fn coroutines_of_a_worker_share_what_is_not_send() {
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
fn a_coroutine_stays_on_its_thread() {
    let engine = Runtime::builder().workers(4).build().unwrap();
    let all: Vec<_> = (0..100)
        .map(|n| {
            engine
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
    assert_eq!(homes.len(), 4, "they are spread over all workers");
}

#[test]
fn sleeping_takes_its_time_and_no_more_and_in_any_order() {
    let (tell, told) = mpsc::channel();
    let asleep = in_coroutine(move || {
        // From a common start, so that it does not matter how long it takes to begin.
        let start = Instant::now() + Duration::from_millis(200);
        let sleepers: Vec<_> = [80, 20, 50, 0, 1]
            .into_iter()
            .map(|ms| {
                let tell = tell.clone();
                spawn(move || {
                    let deadline = start + Duration::from_millis(ms);
                    sleep_until(deadline);
                    assert!(Instant::now() >= deadline);
                    tell.send(ms).unwrap();
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
    let order: Vec<_> = told.try_iter().collect();
    assert_eq!(order, [0, 1, 20, 50, 80]);
    assert!(asleep >= Duration::from_millis(30));
}

#[test]
fn running_out_of_stacks_is_an_error_and_passes() {
    let engine = Runtime::builder()
        .workers(1)
        .max_coroutines(3)
        .build()
        .unwrap();
    let (go, wait) = greenroom::sync::channel::<()>(1);
    let held: Vec<_> = (0..3)
        .map(|_| {
            let wait = wait.clone();
            engine.spawn(move || wait.recv()).unwrap()
        })
        .collect();
    let refused = engine.spawn(|| ()).unwrap_err();
    assert!(matches!(refused, SpawnError { in_use: 3, .. }));
    assert!(refused.to_string().contains("max_coroutines"));
    drop(go);
    for one in held {
        assert!(one.join().unwrap().is_err());
    }
    // A stack is free again a moment after its coroutine was joined.
    let all_back = || {
        let end = Instant::now() + PATIENCE;
        while engine.counters().stacks_in_use > 0 {
            assert!(Instant::now() < end, "stacks come back");
            std::thread::yield_now();
        }
    };
    all_back();
    assert_eq!(engine.spawn(|| 5).unwrap().join().unwrap(), 5);
    all_back();
    let reservation = engine.reserve().unwrap();
    assert_eq!(engine.counters().stacks_in_use, 1);
    drop(reservation);
    assert_eq!(engine.counters().stacks_in_use, 0);
}

#[test]
fn many_coroutines_under_both_kinds_of_guard() {
    for guards in [GuardPages::Auto, GuardPages::Mprotect] {
        let engine = Runtime::builder()
            .workers(2)
            .stack_size(64 << 10)
            .guard_pages(guards)
            .build()
            .unwrap();
        for _ in 0..3 {
            let all: Vec<_> = (0..5000)
                .map(|n| {
                    engine
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
fn large_frames_and_recursion_fit_into_a_stack_that_is_large_enough() {
    fn deep(depth: usize) -> usize {
        let frame = std::hint::black_box([depth; 32]);
        if depth == 0 {
            0
        } else {
            deep(depth - 1) + frame[31].min(1)
        }
    }
    let engine = Runtime::builder()
        .workers(1)
        .stack_size(1 << 20)
        .build()
        .unwrap();
    assert_eq!(engine.spawn(|| deep(500)).unwrap().join().unwrap(), 500);
    let large = engine.spawn(|| {
        let buffer = std::hint::black_box([1_u8; 64 << 10]);
        yield_now();
        buffer.iter().map(|&b| usize::from(b)).sum::<usize>()
    });
    assert_eq!(large.unwrap().join().unwrap(), 64 << 10);
}

#[test]
fn unblocking_leaves_the_worker_to_others() {
    let order = in_coroutine(|| {
        let (tell, told) = greenroom::sync::channel(4);
        let theirs = tell.clone();
        let (release, blocked) = mpsc::channel::<()>();
        let slow = spawn(move || {
            // Blocks its thread until the other coroutine has run, which needs the worker.
            greenroom::unblock(move || blocked.recv_timeout(PATIENCE).unwrap());
            theirs.send("slow").unwrap();
        })
        .unwrap();
        spawn(move || {
            tell.send("fast").unwrap();
            release.send(()).unwrap();
        })
        .unwrap()
        .join()
        .unwrap();
        slow.join().unwrap();
        told.iter().collect::<Vec<_>>()
    });
    assert_eq!(order, ["fast", "slow"]);
    let panicked = one_worker()
        .spawn(|| greenroom::unblock(|| panic!("inside")))
        .unwrap()
        .join();
    assert!(panicked.is_err());
}

#[test]
fn futures_are_waited_for() {
    assert_eq!(in_coroutine(|| greenroom::block_on(async { 7 })), 7);
    // One that another thread completes.
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
            let end = Instant::now() + PATIENCE;
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
fn a_panicking_coroutine_cannot_wait_and_others_do_not_notice_its_panic() {
    struct Waits(mpsc::Sender<Duration>);
    impl Drop for Waits {
        fn drop(&mut self) {
            let before = Instant::now();
            sleep(Duration::from_secs(60));
            yield_now();
            self.0.send(before.elapsed()).unwrap();
        }
    }
    let engine = one_worker();
    let observer = engine.spawn(|| {
        for _ in 0..1000 {
            assert!(!std::thread::panicking());
            yield_now();
        }
    });
    let (tell, told) = mpsc::channel();
    let bomb = engine.spawn(move || {
        let _waits = Waits(tell);
        panic!("while others run");
    });
    assert!(bomb.unwrap().join().is_err());
    assert!(told.recv_timeout(PATIENCE).unwrap() < PATIENCE);
    observer.unwrap().join().unwrap();
}

#[test]
fn dropping_the_engine_lets_coroutines_finish() {
    let (tell, told) = mpsc::channel();
    let engine = one_worker();
    let handle = engine
        .spawn(move || {
            sleep(Duration::from_millis(50));
            tell.send("finished").unwrap();
        })
        .unwrap();
    drop(engine);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "finished");
    handle.join().unwrap();
}

#[test]
fn shutdown_waits_for_the_last_one_and_gives_up_at_its_deadline() {
    let engine = one_worker();
    let (go, wait) = greenroom::sync::channel::<()>(1);
    let stubborn = engine.spawn(move || wait.recv().is_err()).unwrap();
    assert!(!engine.shutdown(Duration::from_millis(20)));
    drop(go);
    assert!(engine.shutdown(PATIENCE));
    stubborn.join().unwrap();
    // Nothing runs there any more, and whoever tries is told.
    let late = engine.spawn(|| ()).unwrap();
    assert!(late.join().is_err());
}

#[test]
fn an_idle_engine_does_nothing() {
    let engine = one_worker();
    engine.spawn(|| ()).unwrap().join().unwrap();
    let parked = engine.spawn(|| sleep(Duration::from_millis(200))).unwrap();
    // Until the coroutine sleeps.
    let end = Instant::now() + PATIENCE;
    while engine.counters().switches < 2 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    let before = engine.counters();
    parked.join().unwrap();
    let after = engine.counters();
    assert_eq!(
        after.switches - before.switches,
        1,
        "one switch, at its end"
    );
}

#[test]
fn a_stall_is_reported_while_it_lasts_and_once() {
    let (tell, told) = mpsc::channel();
    let engine = Runtime::builder()
        .workers(1)
        .on_stall(Duration::from_millis(20), move |stall| {
            tell.send(stall.clone()).unwrap();
        })
        .build()
        .unwrap();
    // Nothing is reported of those that give way.
    engine
        .spawn(|| sleep(Duration::from_millis(60)))
        .unwrap()
        .join()
        .unwrap();
    assert!(told.try_recv().is_err());
    let (release, released) = mpsc::channel::<()>();
    let stuck = engine.reserve().unwrap().spawn("the stuck one", move || {
        released.recv_timeout(PATIENCE).unwrap();
    });
    let stall = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(&*stall.name, "the stuck one");
    assert!(stall.duration >= Duration::from_millis(20));
    release.send(()).unwrap();
    stuck.join().unwrap();
    assert!(told.try_recv().is_err(), "once");
}

#[test]
fn what_is_forgotten_does_no_harm() {
    let engine = one_worker();
    std::mem::forget(engine.spawn(|| vec![1, 2, 3]).unwrap());
    std::mem::forget(engine.reserve().unwrap());
    assert_eq!(engine.spawn(|| 1).unwrap().join().unwrap(), 1);
}

#[test]
fn starting_one_outside_of_the_engine_says_what_to_use() {
    let payload = std::panic::catch_unwind(|| spawn(|| ())).unwrap_err();
    assert!(
        payload
            .downcast_ref::<&str>()
            .unwrap()
            .contains("Engine::spawn")
    );
}

#[test]
fn a_future_of_tokio_is_waited_for_with_a_handle_of_its_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
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
