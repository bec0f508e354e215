//! Files that SIGUSR1 and SIGHUP reopen after logrotate has moved them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

type Hook = Box<dyn Fn() + Send>;

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Opens such a file for appending. A new file has the mode 0600, because it contains data of
/// clients that other users must not read.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

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
