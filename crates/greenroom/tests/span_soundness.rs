//! The subscriber is the user's, and is called before and after each wait: it may panic there, and it
//! may try to wait itself.

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

const PATIENCE: Duration = Duration::from_secs(20);

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
fn a_subscriber_that_panics_or_waits_does_no_harm_to_a_worker() {
    tracing_subscriber::registry().with(Hostile).init();
    for kind in [PANICS, SUSPENDS] {
        let engine = Runtime::builder().workers(1).build().unwrap();
        let run = move || {
            let each = move || {
                let _entered = tracing::info_span!("it").entered();
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
        let (tell, told) = mpsc::channel();
        let all = engine.spawn(run).unwrap();
        let waiting = std::thread::spawn(move || tell.send(all.join().is_ok()));
        assert!(told.recv_timeout(PATIENCE).expect("the worker is gone"));
        waiting.join().unwrap().unwrap();
        assert!(CALLS.load(Ordering::SeqCst) > before);
        assert_eq!(engine.spawn(|| 1).unwrap().join().unwrap(), 1);
    }
}
