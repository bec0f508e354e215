//! The model with one request at a time, on the serving thread.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Concurrency, Dispatch, OverloadPolicy};
use crate::park::{Interest, Park, Parker};
use crate::server::{ChildWatcher, ServerHandle, Task, wait_to_end};
use crate::socket::cancelled;
use crate::timeouts::{earliest, timed_out};

/// Runs one request at a time, on the thread that called `serve_forever`.
///
/// The next client waits until the current request ends. Set a [request
/// timeout](crate::Timeouts::request) if peers are not trusted. A drain cancels a handler that
/// waits for its connection, but not a handler that computes or sleeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sequential;

impl Concurrency for Sequential {
    const NAME: &'static str = "sequential";
    const IS_INLINE: bool = true;

    fn limit(&self) -> (usize, OverloadPolicy) {
        (1, OverloadPolicy::Wait)
    }

    fn process_request<J: Task>(&mut self, task: J, _: &ChildWatcher<'_>) -> Dispatch<J> {
        wait_to_end(Box::new(task).run());
        Dispatch::Taken
    }

    fn parker(&self, server: &ServerHandle) -> Option<Arc<dyn Parker>> {
        Some(Arc::new(CommandAwareParker(server.clone())))
    }
}

/// Waits for the connection and for server commands at the same time. The waiting thread is the
/// accept loop itself, so no other thread can cancel the connection at the drain deadline.
#[derive(Clone)]
struct CommandAwareParker(ServerHandle);

impl Parker for CommandAwareParker {
    fn attach(&self, _: BorrowedFd<'_>) -> io::Result<Box<dyn Park>> {
        Ok(Box::new(self.clone()))
    }
}

impl Park for CommandAwareParker {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is_over(&self) -> bool {
        let drain = self.0.0.lifecycle.commands().drain;
        drain.is_some_and(|drain| drain <= Instant::now())
    }

    fn wait(
        &self,
        fd: BorrowedFd<'_>,
        interest: Interest,
        until: Option<Instant>,
    ) -> io::Result<()> {
        let lifecycle = &self.0.0.lifecycle;
        loop {
            let now = Instant::now();
            let drain = lifecycle.commands().drain;
            if drain.is_some_and(|drain| drain <= now) {
                return Err(cancelled());
            }
            if until.is_some_and(|until| until <= now) {
                return Err(timed_out());
            }
            let timeout = earliest(until, drain)
                .and_then(|end| Timespec::try_from(end.saturating_duration_since(now)).ok());
            // Only the serving thread reads commands. Another thread that writes through a
            // `WriteHalf` would consume the wake-up of the serving thread.
            let reads_commands = lifecycle.is_serving_thread();
            let mut fds = [
                PollFd::from_borrowed_fd(fd, interest.poll_flags()),
                PollFd::new(
                    lifecycle,
                    if reads_commands {
                        PollFlags::IN
                    } else {
                        PollFlags::empty()
                    },
                ),
            ];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) if !fds[0].revents().is_empty() => return Ok(()),
                // The caller checks its state and waits again.
                Ok(_) if !fds[1].revents().is_empty() => {
                    lifecycle.on_wakeup();
                    return Ok(());
                }
                Ok(_) => {}
                Err(Errno::INTR) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
