//! What a coroutine is called.

use std::fmt::{self, Display, Write};
use std::sync::{Arc, LazyLock};

/// What reports of [stalls](crate::Builder::on_stall) and stack overflows call a coroutine. It is
/// put into words only when there is something to report: one that is named after what it works on
/// shares that, and costs no text.
///
/// An overflow is reported from a signal handler: what is shared should neither allocate nor lock
/// when it is displayed. It cannot suspend there, and a panic there ends the process with the rest
/// of the report. In a report of a stall, a panic is caught. A coroutine drops its name as the last
/// thing that it does.
///
/// ```
/// use greenroom::{Runtime, TaskName};
/// use std::fmt::Display;
/// use std::sync::Arc;
///
/// let peer: Arc<dyn Display + Send + Sync> = Arc::new(std::net::Ipv4Addr::LOCALHOST);
/// let engine = Runtime::new()?;
/// assert_eq!(engine.reserve()?.spawn(peer, || 42).join().unwrap(), 42);
/// assert_eq!(TaskName::from("an errand").to_string(), "an errand");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct TaskName(Arc<Shared>);

/// What is displayed.
pub(crate) type Shared = dyn Display + Send + Sync;

impl TaskName {
    pub(crate) fn unnamed() -> Self {
        static UNNAMED: LazyLock<TaskName> = LazyLock::new(|| "unnamed".into());
        UNNAMED.clone()
    }

    /// Where what is displayed is, for as long as this or a clone of it lives.
    pub(crate) fn as_ptr(&self) -> *const Shared {
        Arc::as_ptr(&self.0)
    }

    /// In words, or as many of them as come without an error.
    pub(crate) fn put(&self) -> String {
        let mut words = String::new();
        let _ = write!(words, "{self}");
        words
    }
}

impl From<&str> for TaskName {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for TaskName {
    fn from(text: String) -> Self {
        Self(Arc::new(text))
    }
}

impl From<Arc<str>> for TaskName {
    fn from(text: Arc<str>) -> Self {
        Self(Arc::new(text))
    }
}

impl From<Arc<Shared>> for TaskName {
    fn from(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}
