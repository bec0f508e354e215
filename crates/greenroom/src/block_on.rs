//! Runs futures from blocking code.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::park::{Parked, Unparker, park};

/// Runs a future to completion. While the future is pending, the calling coroutine is parked;
/// outside of a coroutine, the calling thread blocks.
///
/// A future of another async runtime still needs that runtime. For example, a future of tokio must
/// be polled while a handle of tokio's runtime is
/// [entered](https://docs.rs/tokio/latest/tokio/runtime/struct.Handle.html#method.enter). The guard
/// of `enter` is tied to the thread, so enter the handle inside of the future: `block_on(async {
/// handle.spawn(future).await })`.
///
/// ```
/// assert_eq!(greenroom::block_on(async { 6 * 7 }), 42);
/// ```
///
/// # Panics
/// Panics in a destructor that runs because of a panic in a coroutine, if the future is not ready.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let signal = Arc::new(Signal {
        unparker: Unparker::current(),
        woken: AtomicBool::new(false),
    });
    let waker = Waker::from(signal.clone());
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        while !signal.woken.swap(false, Ordering::Acquire) {
            assert!(
                park(None) != Parked::Refused,
                "a coroutine that is panicking cannot wait for a future"
            );
        }
    }
}

struct Signal {
    unparker: Unparker,
    woken: AtomicBool,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.unparker.unpark();
    }
}
