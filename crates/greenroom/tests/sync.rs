//! Locks, conditions and channels, between coroutines, threads, and both.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use greenroom::sync::{Condvar, Mutex, RecvError, TrySendError, channel, oneshot};
use greenroom::{Runtime, sleep, spawn, yield_now};

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `job` by two coroutines on each of two workers, and by two threads.
fn everywhere(job: impl Fn() + Send + Sync + 'static) {
    let engine = Runtime::builder().workers(2).build().unwrap();
    let job = Arc::new(job);
    let coroutines: Vec<_> = (0..4)
        .map(|_| {
            let job = job.clone();
            engine.spawn(move || job()).unwrap()
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
fn a_lock_excludes_everybody_else_even_across_waits() {
    let value = Arc::new(Mutex::new(0));
    let inside = Arc::new(AtomicUsize::new(0));
    let (theirs, count) = (value.clone(), inside.clone());
    everywhere(move || {
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
fn a_lock_is_free_again_after_a_panic() {
    let lock = Arc::new(Mutex::new(1));
    let theirs = lock.clone();
    let engine = Runtime::builder().workers(1).build().unwrap();
    let panicked = engine.spawn(move || {
        let _guard = theirs.lock();
        panic!("with the lock held");
    });
    assert!(panicked.unwrap().join().is_err());
    assert_eq!(*lock.lock(), 1);
    assert!(lock.try_lock().is_some());
}

#[test]
fn a_condition_wakes_who_waits_and_gives_up_at_a_deadline() {
    let pair = Arc::new((Mutex::new(0), Condvar::new()));
    let theirs = pair.clone();
    // Everybody waits for all the others.
    everywhere(move || {
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
fn a_channel_hands_over_every_value_once() {
    let (sender, receiver) = channel(3);
    let engine = Runtime::builder().workers(2).build().unwrap();
    let sum = Arc::new(AtomicUsize::new(0));
    let receivers: Vec<_> = (0..3)
        .map(|_| {
            let (receiver, sum) = (receiver.clone(), sum.clone());
            engine
                .spawn(move || {
                    for value in receiver.iter() {
                        sum.fetch_add(value, Ordering::SeqCst);
                    }
                })
                .unwrap()
        })
        .collect();
    drop(receiver);
    everywhere(move || (1..=500).for_each(|n| sender.send(n).unwrap()));
    receivers.into_iter().for_each(|one| one.join().unwrap());
    assert_eq!(sum.load(Ordering::SeqCst), 6 * 500 * 501 / 2);
}

#[test]
fn a_channel_is_bounded_and_knows_when_an_end_is_gone() {
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
    // One that waits for room is told when nobody will ever make some.
    let blocked = std::thread::spawn(move || sender.send(2));
    drop(receiver);
    assert_eq!(blocked.join().unwrap().unwrap_err().0, 2);
}

#[test]
fn one_value_arrives_or_its_sender_is_gone() {
    let engine = Runtime::new().unwrap();
    let (sender, receiver) = oneshot();
    let waiting = engine.spawn(move || receiver.recv()).unwrap();
    sender.send("news").unwrap();
    assert_eq!(waiting.join().unwrap(), Ok("news"));
    let (sender, receiver) = oneshot::<()>();
    let waiting = engine.spawn(move || receiver.recv()).unwrap();
    drop(sender);
    assert_eq!(waiting.join().unwrap(), Err(RecvError::Disconnected));
}

#[test]
fn a_wake_up_is_not_lost_with_one_that_gave_up() {
    // Receivers that time out and receivers that do not, over and over: every value must arrive.
    let engine = Runtime::builder().workers(2).build().unwrap();
    let (sender, receiver) = channel(1);
    let impatient: Vec<_> = (0..4)
        .map(|n| {
            let receiver = receiver.clone();
            engine
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
    let patient = engine.spawn(move || receiver.iter().count()).unwrap();
    for _ in 0..2000 {
        sender.send(()).unwrap();
    }
    drop(sender);
    let total: usize = impatient.into_iter().map(|one| one.join().unwrap()).sum();
    assert_eq!(total + patient.join().unwrap(), 2000);
}

#[test]
fn a_standard_lock_held_across_a_wait_is_found_by_the_stall_detector() {
    let (tell, told) = std::sync::mpsc::channel();
    let engine = Runtime::builder()
        .workers(1)
        .on_stall(Duration::from_millis(20), move |stall| {
            tell.send(stall.name.clone()).unwrap();
        })
        .build()
        .unwrap();
    let lock = Arc::new(std::sync::Mutex::new(()));
    let held = lock.lock().unwrap();
    let theirs = lock.clone();
    // It blocks the thread, and with it the worker: all that can be done is to say so.
    let blocked = engine
        .reserve()
        .unwrap()
        .spawn("blocked by a lock", move || {
            drop(theirs.lock().unwrap());
        });
    assert_eq!(&*told.recv_timeout(PATIENCE).unwrap(), "blocked by a lock");
    drop(held);
    blocked.join().unwrap();
    let local = engine
        .spawn(|| spawn(|| 3).unwrap().join().unwrap())
        .unwrap();
    assert_eq!(local.join().unwrap(), 3);
}
