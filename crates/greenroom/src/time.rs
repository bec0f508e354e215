//! Sleeping.

use std::time::{Duration, Instant};

use crate::park::{Parked, park};

/// Sleeps for at least `duration`: the coroutine that calls, or else the thread.
///
/// In a destructor that runs because of a panic, a coroutine cannot sleep, and goes on at once.
pub fn sleep(duration: Duration) {
    if !crate::is_coroutine() {
        return std::thread::sleep(duration);
    }
    match Instant::now().checked_add(duration) {
        Some(deadline) => sleep_until(deadline),
        // Beyond what the clock can tell: for ever.
        None => while park(None) != Parked::Refused {},
    }
}

/// Sleeps until a point in time; see [`sleep`].
pub fn sleep_until(deadline: Instant) {
    while Instant::now() < deadline {
        if park(Some(deadline)) == Parked::Refused {
            return;
        }
    }
}
