//! The process reaches its limit of mappings. The test has a process of its own, because other
//! tests could not start threads at the limit.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use greenroom::{GuardPages, Runtime};

#[test]
fn coroutines_beyond_the_mapping_limit_start_when_others_end() {
    // Each guard splits the mapping twice; the kernel allows about 65,530 mappings.
    let runtime = Runtime::builder()
        .workers(1)
        .stack_size(8 << 10)
        .max_coroutines(40_000)
        .guard_pages(GuardPages::Mprotect)
        .build()
        .unwrap();
    let started = Arc::new(AtomicUsize::new(0));
    let (release, wait) = greenroom::sync::channel::<()>(1);
    let all: Vec<_> = (0..40_000)
        .map_while(|_| {
            let (wait, started) = (wait.clone(), started.clone());
            runtime
                .spawn(move || {
                    started.fetch_add(1, Ordering::SeqCst);
                    let _ = wait.recv();
                })
                .ok()
        })
        .collect();
    drop(release);
    let count = all.len();
    all.into_iter().for_each(|one| one.join().unwrap());
    assert_eq!(
        started.load(Ordering::SeqCst),
        count,
        "each coroutine has run"
    );
    assert!(count > 20_000, "{count}");
}
