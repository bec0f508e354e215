//! Files that are opened anew when asked: by SIGUSR1 and SIGHUP, after logrotate has moved them away.

use std::sync::{Mutex, MutexGuard, PoisonError};

type Hook = Box<dyn Fn() + Send>;

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Has `reopen` called at each such signal. It must not wait.
pub(crate) fn register(reopen: impl Fn() + Send + 'static) {
    hooks().push(Box::new(reopen));
}

/// Whether there are files to open anew.
pub(crate) fn has_any() -> bool {
    !hooks().is_empty()
}

/// Opens all of them anew.
pub(crate) fn all() {
    hooks().iter().for_each(|reopen| reopen());
}

fn hooks() -> MutexGuard<'static, Vec<Hook>> {
    HOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}
