//! A thread per request.

use std::thread;

use super::{Concurrency, Dispatch, OverloadPolicy, spawn_task};
use crate::server::{ChildWatcher, Task, wait_to_end};

/// Serves each request on a thread of its own.
///
/// Threads are not recorded: what is known of a request is forgotten with its end. The default
/// limit is 1,024 requests at once.
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
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many requests may be served at once; 0 is taken as 1.
    #[must_use]
    pub fn max_threads(mut self, max: usize) -> Self {
        self.max_threads = max.max(1);
        self
    }

    /// What happens to the next one.
    #[must_use]
    pub fn overload_policy(mut self, policy: OverloadPolicy) -> Self {
        self.at_limit = policy;
        self
    }

    /// The stack of each thread, in bytes; the default is the standard library's, 2 MiB.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Lets closing and draining neither wait for handlers nor cut them: they end when they do,
    /// or with the process.
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
        spawn_task(task, |theirs| {
            let thread = builder.spawn(move || wait_to_end(theirs.run()));
            thread.map(drop)
        })
    }

    fn is_waited_for(&self) -> bool {
        !self.daemon
    }
}
