//! The `tracing` subscriber is user code that is called before and after each wait. It may panic
//! there, and it may try to wait.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use greenroom::{Runtime, sleep, spawn, yield_now};
use tracing::Subscriber;
use tracing::span::Id;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

const TIMEOUT: Duration = Duration::from_secs(20);

const PANICS: u8 = 1;
const SUSPENDS: u8 = 2;

static ACT: AtomicU8 = AtomicU8::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

fn act() {
    CALLS.fetch_add(1, Ordering::SeqCst);
    match ACT.load(Ordering::SeqCst) {
        PANICS => panic!("from the subscriber"),
        SUSPENDS => {
            yield_now();
            sleep(Duration::from_millis(1));
        }
        _ => {}
    }
}

struct Hostile;

impl<S: Subscriber> Layer<S> for Hostile {
    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        act();
    }

    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        act();
    }
}

#[test]
fn subscriber_that_panics_or_waits_does_not_harm_the_worker() {
    tracing_subscriber::registry().with(Hostile).init();
    for kind in [PANICS, SUSPENDS] {
        let runtime = Runtime::builder().workers(1).build().unwrap();
        let run = move || {
            let each = move || {
                let _entered = tracing::info_span!("task").entered();
                ACT.store(kind, Ordering::SeqCst);
                for _ in 0..3 {
                    yield_now();
                    sleep(Duration::from_millis(1));
                }
                ACT.store(0, Ordering::SeqCst);
            };
            let all: Vec<_> = (0..3).map(|_| spawn(each).unwrap()).collect();
            all.into_iter().for_each(|one| drop(one.join()));
        };
        let before = CALLS.load(Ordering::SeqCst);
        let (tx, rx) = mpsc::channel();
        let all = runtime.spawn(run).unwrap();
        let waiting = std::thread::spawn(move || tx.send(all.join().is_ok()));
        assert!(rx.recv_timeout(TIMEOUT).expect("the worker is gone"));
        waiting.join().unwrap().unwrap();
        assert!(CALLS.load(Ordering::SeqCst) > before);
        assert_eq!(runtime.spawn(|| 1).unwrap().join().unwrap(), 1);
    }
}
