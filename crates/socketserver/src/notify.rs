//! A flag to wait for, by one thread or coroutine. Raising it never waits, so that a destructor may.

use std::time::Instant;

#[cfg(not(feature = "green"))]
pub(crate) use blocking::Notify;
#[cfg(feature = "green")]
pub(crate) use parking::Notify;

/// Runs something beside the caller: in a coroutine if the caller is one, else in a thread.
pub(crate) fn spawn_beside(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    #[cfg(feature = "green")]
    if greenroom::is_coroutine() {
        return match greenroom::spawn(run) {
            Ok(_detached) => Ok(()),
            Err(out_of_stacks) => Err(std::io::Error::other(out_of_stacks)),
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

    /// See the module.
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
            // If it is full, it is raised.
            let _ = self.notify.try_send(());
        }

        /// Waits until it is raised, and lowers it; `false` if `until` has passed first.
        pub(crate) fn wait(&self, until: Option<Instant>) -> bool {
            self.wait.recv_until(until).is_ok()
        }
    }
}

#[cfg(not(feature = "green"))]
mod blocking {
    use super::Instant;
    use std::sync::{Condvar, Mutex, PoisonError};

    /// See the module.
    #[derive(Debug, Default)]
    pub(crate) struct Notify {
        raised: Mutex<bool>,
        changed: Condvar,
    }

    impl Notify {
        pub(crate) fn notify(&self) {
            *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.changed.notify_one();
        }

        /// Waits until it is raised, and lowers it; `false` if `until` has passed first.
        pub(crate) fn wait(&self, until: Option<Instant>) -> bool {
            let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
            while !std::mem::take(&mut *raised) {
                let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                raised = match left {
                    Some(left) if left.is_zero() => return false,
                    Some(left) => match self.changed.wait_timeout(raised, left) {
                        Ok((raised, _)) => raised,
                        Err(poisoned) => poisoned.into_inner().0,
                    },
                    None => self
                        .changed
                        .wait(raised)
                        .unwrap_or_else(PoisonError::into_inner),
                };
            }
            true
        }
    }
}
