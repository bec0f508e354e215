//! A scheduling policy for threads that hand work to workers and should not preempt them.

#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

/// Runs the current thread under `SCHED_BATCH` (`sched(7)`) until dropped. A thread with this
/// policy does not preempt other threads when it wakes up: it runs when a core is free or when its
/// turn comes.
///
/// Use it for a thread that sleeps until input arrives and hands the input to a
/// [`Runtime`](crate::Runtime). If the thread shares a core with a worker, it would otherwise
/// interrupt the worker for each single input. Under `SCHED_BATCH` it finds several inputs when the
/// worker sleeps. On a core of its own, the thread runs without delay.
///
/// Threads and processes that this thread starts during that time inherit the policy and keep it.
///
/// ```
/// let guard = greenroom::BatchScheduling::begin();
/// // accept(2), and Runtime::reserve, in a loop
/// drop(guard);
/// ```
pub struct BatchScheduling {
    /// True if the thread had the default policy before.
    changed: bool,
    /// Makes the guard `!Send`, because the policy belongs to the thread that created the guard.
    _thread: PhantomData<*const ()>,
}

impl BatchScheduling {
    /// Switches the current thread to `SCHED_BATCH`. Does nothing if the thread already has another
    /// policy than the default one, or if the system does not permit the change.
    #[must_use = "the policy ends when the guard is dropped"]
    pub fn begin() -> Self {
        Self {
            changed: has_default_policy() && schedule(libc::SCHED_BATCH),
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
        f.debug_struct("BatchScheduling")
            .field("changed", &self.changed)
            .finish_non_exhaustive()
    }
}

/// Returns true if the calling thread has the default policy, `SCHED_OTHER`.
fn has_default_policy() -> bool {
    // SAFETY: the call takes a number, and 0 stands for the calling thread.
    unsafe { libc::sched_getscheduler(0) == libc::SCHED_OTHER }
}

fn schedule(policy: libc::c_int) -> bool {
    // 0 is the only priority that both policies allow.
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is that of a valid sched_param, which the call only reads; 0 stands for
    // the calling thread.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_applies_to_its_thread_until_dropped() {
        std::thread::spawn(|| {
            let guard = BatchScheduling::begin();
            assert!(guard.changed && !has_default_policy());
            // A nested guard changes nothing, and its drop does not end the outer one.
            drop(BatchScheduling::begin());
            assert!(!has_default_policy());
            drop(guard);
            assert!(has_default_policy());
        })
        .join()
        .unwrap();
        assert!(
            has_default_policy(),
            "the policy of this thread has changed, too"
        );
    }
}
