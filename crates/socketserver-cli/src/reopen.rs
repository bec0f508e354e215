//! Files that SIGUSR1 and SIGHUP reopen after logrotate has moved them.

use std::sync::{Mutex, MutexGuard, PoisonError};

type Hook = Box<dyn Fn() + Send>;

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Calls `reopen` at each such signal. `reopen` must not block.
pub(crate) fn register(reopen: impl Fn() + Send + 'static) {
    hooks().push(Box::new(reopen));
}

/// Returns true if there are files to reopen.
pub(crate) fn has_any() -> bool {
    !hooks().is_empty()
}

/// Reopens all files.
pub(crate) fn all() {
    hooks().iter().for_each(|reopen| reopen());
}

fn hooks() -> MutexGuard<'static, Vec<Hook>> {
    HOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}
