//! A flag that one thread or coroutine can wait for. Setting it never waits, so that a destructor
//! may set it.

use std::time::Instant;

#[cfg(not(feature = "green"))]
pub(crate) use blocking::Notify;
#[cfg(feature = "green")]
pub(crate) use parking::Notify;

/// Runs a closure concurrently: in a coroutine if the caller is a coroutine, otherwise in a thread.
pub(crate) fn spawn_beside(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    #[cfg(feature = "green")]
    if greenroom::is_coroutine() {
        return match greenroom::spawn(run) {
            Ok(_detached) => Ok(()),
            Err(error) => Err(std::io::Error::other(error)),
        };
    }
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map(drop)
}

#[cfg(feature = "green")]
mod parking {
    use super::Instant;
    use greenroom::sync::{Receiver, Sender, channel};

    /// A flag based on a channel that parks coroutines.
    #[derive(Debug)]
    pub(crate) struct Notify {
        notify: Sender<()>,
        wait: Receiver<()>,
    }

    impl Default for Notify {
        fn default() -> Self {
            let (notify, wait) = channel(1);
            Self { notify, wait }
        }
    }

    impl Notify {
        pub(crate) fn notify(&self) {
            // A full channel means that the flag is already set.
            let _ = self.notify.try_send(());
        }

        /// Waits until the flag is set, and clears it. Returns `false` if `until` passes first.
        pub(crate) fn wait(&self, until: Option<Instant>) -> bool {
            self.wait.recv_until(until).is_ok()
        }
    }
}

#[cfg(not(feature = "green"))]
mod blocking {
    use super::Instant;
    use std::sync::{Condvar, Mutex, PoisonError};

    /// A flag based on a condition variable.
    #[derive(Debug, Default)]
    pub(crate) struct Notify {
        is_set: Mutex<bool>,
        changed: Condvar,
    }

    impl Notify {
        pub(crate) fn notify(&self) {
            *self.is_set.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.changed.notify_one();
        }

        /// Waits until the flag is set, and clears it. Returns `false` if `until` passes first.
        pub(crate) fn wait(&self, until: Option<Instant>) -> bool {
            let mut is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
            while !std::mem::take(&mut *is_set) {
                let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                is_set = match left {
                    Some(left) if left.is_zero() => return false,
                    Some(left) => match self.changed.wait_timeout(is_set, left) {
                        Ok((is_set, _)) => is_set,
                        Err(poisoned) => poisoned.into_inner().0,
                    },
                    None => self
                        .changed
                        .wait(is_set)
                        .unwrap_or_else(PoisonError::into_inner),
                };
            }
            true
        }
    }
}
