//! The agreement between a worker and those who send to it, in every order of their steps.
//!
//! `RUSTFLAGS="--cfg greenroom_loom" cargo test --release -p greenroom --test loom`; without that flag there is
//! nothing here. It takes in the one file that it checks, since what else the crate is made of
//! (coroutines, system calls) is beyond loom.

#![cfg(greenroom_loom)]
#![allow(clippy::unwrap_used)]

mod sync_shim {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

#[allow(dead_code)]
#[path = "../src/mailbox.rs"]
mod mailbox;

use loom::sync::{Arc, Notify};
use loom::thread;
use mailbox::Inbox;
use sync_shim::{AtomicBool, Ordering};

/// Receives as a worker does, which sleeps until it is notified (a notification that comes early is
/// kept, as by an eventfd), until it has got so many.
fn receive(mailbox: &Inbox<u32>, waker: &Notify, count: usize) -> Vec<u32> {
    let (mut got, mut messages) = (Vec::new(), Vec::new());
    while got.len() < count {
        mailbox.take(&mut messages);
        got.append(&mut messages);
        if got.len() < count && mailbox.fall_asleep() {
            waker.wait();
            mailbox.wake_up();
        }
    }
    got
}

#[test]
fn no_wake_up_is_lost() {
    // Loom reports a thread that waits for ever as a deadlock.
    loom::model(|| {
        let shared = Arc::new((Inbox::default(), Notify::new()));
        let senders: Vec<_> = (0..2)
            .map(|n| {
                let shared = shared.clone();
                thread::spawn(move || {
                    if shared.0.send(n).unwrap() {
                        shared.1.notify();
                    }
                })
            })
            .collect();
        let mut got = receive(&shared.0, &shared.1, 2);
        got.sort_unstable();
        assert_eq!(got, [0, 1]);
        senders.into_iter().for_each(|one| one.join().unwrap());
    });
}

#[test]
fn a_message_is_delivered_or_comes_back() {
    loom::model(|| {
        let mailbox = Arc::new(Inbox::default());
        let came_back = Arc::new(AtomicBool::new(false));
        let (theirs, flag) = (mailbox.clone(), came_back.clone());
        let sender = thread::spawn(move || {
            flag.store(theirs.send(7).is_err(), Ordering::SeqCst);
        });
        let mut got = Vec::new();
        loop {
            let mut messages = Vec::new();
            mailbox.take(&mut messages);
            got.append(&mut messages);
            if mailbox.close() {
                break;
            }
        }
        sender.join().unwrap();
        assert_ne!(got == [7], came_back.load(Ordering::SeqCst));
    });
}
