//! The name of a coroutine.

use std::fmt::{self, Display, Write};
use std::sync::{Arc, LazyLock};

/// The name of a coroutine in reports of [stalls](crate::Builder::on_stall) and stack overflows. It
/// is formatted only when there is something to report. A coroutine can share a value that it works
/// on as its name, which costs no text.
///
/// An overflow is reported from a signal handler, so the shared value should neither allocate nor
/// lock when it is displayed. The display code cannot suspend there, and a panic there ends the
/// process with the rest of the report. In a report of a stall, a panic is caught. A coroutine
/// drops its name as its last action.
///
/// ```
/// use greenroom::{Runtime, TaskName};
/// use std::fmt::Display;
/// use std::sync::Arc;
///
/// let peer: Arc<dyn Display + Send + Sync> = Arc::new(std::net::Ipv4Addr::LOCALHOST);
/// let runtime = Runtime::new()?;
/// assert_eq!(runtime.reserve()?.spawn(peer, || 42).join().unwrap(), 42);
/// assert_eq!(TaskName::from("upload").to_string(), "upload");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct TaskName(Arc<Shared>);

/// The displayed value.
pub(crate) type Shared = dyn Display + Send + Sync;

impl TaskName {
    pub(crate) fn unnamed() -> Self {
        static UNNAMED: LazyLock<TaskName> = LazyLock::new(|| "unnamed".into());
        UNNAMED.clone()
    }

    /// Returns a pointer to the displayed value. It is valid while this name or a clone of it
    /// lives.
    pub(crate) fn as_ptr(&self) -> *const Shared {
        Arc::as_ptr(&self.0)
    }

    /// Formats the name, up to the first error of its `Display` implementation.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        let _ = write!(text, "{self}");
        text
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
        write!(f, "TaskName({self})")
    }
}
