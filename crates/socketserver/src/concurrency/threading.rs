//! The model with a thread per request.

use std::thread;

use super::{Concurrency, Dispatch, OverloadPolicy, spawn_task};
use crate::server::{ChildWatcher, Task, wait_to_end};

/// Runs each request on a thread of its own.
///
/// The state of a request, including its thread, is freed when the request ends. The default limit
/// is 1,024 active requests.
#[derive(Clone, Copy, Debug)]
pub struct Threading {
    max_threads: usize,
    at_limit: OverloadPolicy,
    pub(crate) stack_size: Option<usize>,
    daemon: bool,
}

impl Default for Threading {
    fn default() -> Self {
        Self {
            max_threads: 1024,
            at_limit: OverloadPolicy::Wait,
            stack_size: None,
            daemon: false,
        }
    }
}

impl Threading {
    /// Creates the model with its default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of active requests. Defaults to 1,024; 0 counts as 1.
    #[must_use]
    pub fn max_threads(mut self, max: usize) -> Self {
        self.max_threads = max.max(1);
        self
    }

    /// Sets the policy for a request beyond the limit. Defaults to [`OverloadPolicy::Wait`].
    #[must_use]
    pub fn overload_policy(mut self, policy: OverloadPolicy) -> Self {
        self.at_limit = policy;
        self
    }

    /// Sets the stack size of each thread, in bytes. Defaults to the standard library's 2 MiB.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Makes closing and draining neither wait for handlers nor cancel them. Handlers end by
    /// themselves, or with the process.
    #[must_use]
    pub fn daemon_threads(mut self) -> Self {
        self.daemon = true;
        self
    }
}

impl Concurrency for Threading {
    const NAME: &'static str = "threading";

    fn limit(&self) -> (usize, OverloadPolicy) {
        (self.max_threads, self.at_limit)
    }

    fn process_request<J: Task>(&mut self, task: J, _: &ChildWatcher<'_>) -> Dispatch<J> {
        let mut builder = thread::Builder::new().name(format!("request {}", task.info().id()));
        if let Some(bytes) = self.stack_size {
            builder = builder.stack_size(bytes);
        }
        spawn_task(task, |cell| {
            let thread = builder.spawn(move || wait_to_end(cell.run()));
            thread.map(drop)
        })
    }

    fn is_waited_for(&self) -> bool {
        !self.daemon
    }
}
