//! The process has no room for further mappings. In a process of its own, as nobody else in it
//! could start a thread meanwhile.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use greenroom::{GuardPages, Runtime};

#[test]
fn too_many_stacks_for_mprotect_are_started_when_others_end() {
    // Each guard splits the mapping twice; the kernel allows about 65,530 mappings.
    let engine = Runtime::builder()
        .workers(1)
        .stack_size(8 << 10)
        .max_coroutines(40_000)
        .guard_pages(GuardPages::Mprotect)
        .build()
        .unwrap();
    let started = Arc::new(AtomicUsize::new(0));
    let (go, wait) = greenroom::sync::channel::<()>(1);
    let all: Vec<_> = (0..40_000)
        .map_while(|_| {
            let (wait, started) = (wait.clone(), started.clone());
            engine
                .spawn(move || {
                    started.fetch_add(1, Ordering::SeqCst);
                    let _ = wait.recv();
                })
                .ok()
        })
        .collect();
    drop(go);
    let count = all.len();
    all.into_iter().for_each(|one| one.join().unwrap());
    assert_eq!(started.load(Ordering::SeqCst), count, "none is lost");
    assert!(count > 20_000, "{count}");
}
