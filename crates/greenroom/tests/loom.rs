//! The protocol between a worker and its senders, checked in every interleaving.
//!
//! Run it with `RUSTFLAGS="--cfg greenroom_loom" cargo test --release -p greenroom --test loom`.
//! Without that flag the test is empty. It includes only the file that it checks, because the rest
//! of the crate (coroutines, system calls) is beyond loom.

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
use mailbox::Mailbox;
use sync_shim::{AtomicBool, Ordering};

/// Receives `count` messages as a worker does: it sleeps until it is notified. An early
/// notification is kept, as by an eventfd.
fn receive(mailbox: &Mailbox<u32>, waker: &Notify, count: usize) -> Vec<u32> {
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
fn wake_up_is_never_lost() {
    // Loom reports a thread that never wakes up as a deadlock.
    loom::model(|| {
        let shared = Arc::new((Mailbox::default(), Notify::new()));
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
fn message_is_delivered_or_returned() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::default());
        let returned = Arc::new(AtomicBool::new(false));
        let (sender_mailbox, flag) = (mailbox.clone(), returned.clone());
        let sender = thread::spawn(move || {
            flag.store(sender_mailbox.send(7).is_err(), Ordering::SeqCst);
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
        assert_ne!(got == [7], returned.load(Ordering::SeqCst));
    });
}
