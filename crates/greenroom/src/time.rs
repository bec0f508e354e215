//! Sleeping.

use std::time::{Duration, Instant};

use crate::park::{Parked, park};

/// Sleeps for at least `duration`. Parks the calling coroutine; outside of a coroutine, blocks the
/// thread.
///
/// In a destructor that runs because of a panic, a coroutine cannot sleep, and the call returns at
/// once.
pub fn sleep(duration: Duration) {
    if !crate::is_coroutine() {
        return std::thread::sleep(duration);
    }
    match Instant::now().checked_add(duration) {
        Some(deadline) => sleep_until(deadline),
        // The deadline is beyond the range of the clock, so the wait never ends.
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
