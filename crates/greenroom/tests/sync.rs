//! Locks, condition variables and channels, between coroutines, threads, and both.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use greenroom::sync::{Condvar, Mutex, RecvError, TrySendError, channel, oneshot};
use greenroom::{Runtime, sleep, spawn, yield_now};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs `job` in two coroutines on each of two workers, and in two threads.
fn in_coroutines_and_threads(job: impl Fn() + Send + Sync + 'static) {
    let runtime = Runtime::builder().workers(2).build().unwrap();
    let job = Arc::new(job);
    let coroutines: Vec<_> = (0..4)
        .map(|_| {
            let job = job.clone();
            runtime.spawn(move || job()).unwrap()
        })
        .collect();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let job = job.clone();
            std::thread::spawn(move || job())
        })
        .collect();
    coroutines.into_iter().for_each(|one| one.join().unwrap());
    threads.into_iter().for_each(|one| one.join().unwrap());
}

#[test]
fn lock_excludes_others_across_waits() {
    let value = Arc::new(Mutex::new(0));
    let inside = Arc::new(AtomicUsize::new(0));
    let (theirs, count) = (value.clone(), inside.clone());
    in_coroutines_and_threads(move || {
        for round in 0..200 {
            let mut value = theirs.lock();
            assert_eq!(count.fetch_add(1, Ordering::SeqCst), 0);
            if round % 20 == 0 {
                sleep(Duration::from_micros(200));
            } else if round % 3 == 0 {
                yield_now();
            }
            *value += 1;
            assert_eq!(count.fetch_sub(1, Ordering::SeqCst), 1);
        }
    });
    assert_eq!(*value.lock(), 1200);
}

#[test]
fn lock_is_free_after_a_panic_of_its_holder() {
    let lock = Arc::new(Mutex::new(1));
    let theirs = lock.clone();
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let panicked = runtime.spawn(move || {
        let _guard = theirs.lock();
        panic!("with the lock held");
    });
    assert!(panicked.unwrap().join().is_err());
    assert_eq!(*lock.lock(), 1);
    assert!(lock.try_lock().is_some());
}

#[test]
fn condvar_wakes_all_waiters_and_returns_at_its_deadline() {
    let pair = Arc::new((Mutex::new(0), Condvar::new()));
    let theirs = pair.clone();
    // Each task waits for all others.
    in_coroutines_and_threads(move || {
        let (count, changed) = &*theirs;
        let mut count = count.lock();
        *count += 1;
        changed.notify_all();
        while *count < 6 {
            count = changed.wait(count);
        }
    });
    let (count, changed) = &*pair;
    let before = Instant::now();
    let deadline = before + Duration::from_millis(30);
    let (guard, timed_out) = changed.wait_until(count.lock(), Some(deadline));
    assert!(timed_out && before.elapsed() >= Duration::from_millis(30));
    assert_eq!(*guard, 6);
}

#[test]
fn channel_delivers_each_value_once() {
    let (sender, receiver) = channel(3);
    let runtime = Runtime::builder().workers(2).build().unwrap();
    let sum = Arc::new(AtomicUsize::new(0));
    let receivers: Vec<_> = (0..3)
        .map(|_| {
            let (receiver, sum) = (receiver.clone(), sum.clone());
            runtime
                .spawn(move || {
                    for value in receiver.iter() {
                        sum.fetch_add(value, Ordering::SeqCst);
                    }
                })
                .unwrap()
        })
        .collect();
    drop(receiver);
    in_coroutines_and_threads(move || (1..=500).for_each(|n| sender.send(n).unwrap()));
    receivers.into_iter().for_each(|one| one.join().unwrap());
    assert_eq!(sum.load(Ordering::SeqCst), 6 * 500 * 501 / 2);
}

#[test]
fn channel_is_bounded_and_reports_a_dropped_end() {
    let (sender, receiver) = channel(2);
    sender.try_send(1).unwrap();
    sender.try_send(2).unwrap();
    assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
    assert_eq!(receiver.recv(), Ok(1));
    drop(sender);
    assert_eq!(receiver.recv(), Ok(2));
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));

    let (sender, receiver) = channel(1);
    let soon = Some(Instant::now() + Duration::from_millis(10));
    assert_eq!(receiver.recv_until(soon), Err(RecvError::TimedOut));
    sender.send(1).unwrap();
    // A blocked sender gets an error when the last receiver is dropped.
    let blocked = std::thread::spawn(move || sender.send(2));
    drop(receiver);
    assert_eq!(blocked.join().unwrap().unwrap_err().0, 2);
}

#[test]
fn oneshot_delivers_one_value_or_reports_a_dropped_sender() {
    let runtime = Runtime::new().unwrap();
    let (sender, receiver) = oneshot();
    let waiting = runtime.spawn(move || receiver.recv()).unwrap();
    sender.send("news").unwrap();
    assert_eq!(waiting.join().unwrap(), Ok("news"));
    let (sender, receiver) = oneshot::<()>();
    let waiting = runtime.spawn(move || receiver.recv()).unwrap();
    drop(sender);
    assert_eq!(waiting.join().unwrap(), Err(RecvError::Disconnected));
}

#[test]
fn wake_up_is_not_lost_when_waiters_time_out() {
    // Receivers with short timeouts and a receiver without one compete: every value must arrive.
    let runtime = Runtime::builder().workers(2).build().unwrap();
    let (sender, receiver) = channel(1);
    let with_timeout: Vec<_> = (0..4)
        .map(|n| {
            let receiver = receiver.clone();
            runtime
                .spawn(move || {
                    let mut got = 0;
                    loop {
                        let soon = Instant::now() + Duration::from_micros(50 * n);
                        match receiver.recv_until(Some(soon)) {
                            Ok(()) => got += 1,
                            Err(RecvError::TimedOut) => {}
                            Err(_) => return got,
                        }
                    }
                })
                .unwrap()
        })
        .collect();
    let without_timeout = runtime.spawn(move || receiver.iter().count()).unwrap();
    for _ in 0..2000 {
        sender.send(()).unwrap();
    }
    drop(sender);
    let total: usize = with_timeout
        .into_iter()
        .map(|one| one.join().unwrap())
        .sum();
    assert_eq!(total + without_timeout.join().unwrap(), 2000);
}

#[test]
fn std_lock_held_across_a_wait_is_reported_as_a_stall() {
    let (tx, rx) = std::sync::mpsc::channel();
    let runtime = Runtime::builder()
        .workers(1)
        .on_stall(Duration::from_millis(20), move |stall| {
            tx.send(stall.name.clone()).unwrap();
        })
        .build()
        .unwrap();
    let lock = Arc::new(std::sync::Mutex::new(()));
    let held = lock.lock().unwrap();
    let theirs = lock.clone();
    // The lock blocks the thread, and so the worker. The runtime can only report it.
    let blocked = runtime
        .reserve()
        .unwrap()
        .spawn("blocked by a lock", move || {
            drop(theirs.lock().unwrap());
        });
    assert_eq!(&*rx.recv_timeout(TIMEOUT).unwrap(), "blocked by a lock");
    drop(held);
    blocked.join().unwrap();
    let local = runtime
        .spawn(|| spawn(|| 3).unwrap().join().unwrap())
        .unwrap();
    assert_eq!(local.join().unwrap(), 3);
}
