//! Threads that hand work to workers, and should not push them aside for it.

#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

/// For as long as this lives, waking up the thread that has made it interrupts nobody: it runs when
/// a core is free, or when its turn has come. The system calls that `SCHED_BATCH`, see `sched(7)`.
///
/// It is for a thread that sleeps until something comes in and hands that to an
/// [`Runtime`](crate::Engine). If the two share a core, such a thread would otherwise interrupt the
/// worker for each single thing, instead of finding several of them when the worker sleeps. On a
/// core of its own it runs as soon as ever.
///
/// Threads and processes that this thread starts meanwhile are scheduled in the same way, and stay so.
///
/// ```
/// let feeding = greenroom::BatchScheduling::begin();
/// // accept(2), and Runtime::reserve, in a loop
/// drop(feeding);
/// ```
pub struct BatchScheduling {
    /// The thread was scheduled as usual before.
    changed: bool,
    /// It is about the thread that has made it.
    _thread: PhantomData<*const ()>,
}

impl BatchScheduling {
    /// Begins. Where the thread is scheduled in a particular way already, or the system does not
    /// allow it, nothing changes.
    #[must_use = "it ends when it is dropped"]
    pub fn begin() -> Self {
        Self {
            changed: is_usual() && schedule(libc::SCHED_BATCH),
            _thread: PhantomData,
        }
    }
}

impl Drop for BatchScheduling {
    fn drop(&mut self) {
        if self.changed {
            schedule(libc::SCHED_OTHER);
        }
    }
}

impl fmt::Debug for BatchScheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feeding")
            .field("changed", &self.changed)
            .finish_non_exhaustive()
    }
}

/// Whether the calling thread is scheduled as threads are unless somebody says otherwise.
fn is_usual() -> bool {
    // SAFETY: it takes a number, of which 0 is the calling thread.
    unsafe { libc::sched_getscheduler(0) == libc::SCHED_OTHER }
}

fn schedule(policy: libc::c_int) -> bool {
    // Both policies have no other priority than this one.
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is that of a valid sched_param, which is only read during the call; 0 is
    // the calling thread.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_for_its_thread_and_ends() {
        std::thread::spawn(|| {
            let feeding = BatchScheduling::begin();
            assert!(feeding.changed && !is_usual());
            // One within another changes nothing, and its end does not end the first.
            drop(BatchScheduling::begin());
            assert!(!is_usual());
            drop(feeding);
            assert!(is_usual());
        })
        .join()
        .unwrap();
        assert!(is_usual(), "another thread");
    }
}
