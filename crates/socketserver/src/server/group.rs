//! A group of servers of any kinds in one accept loop.

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::accept_loop::{LoopMember, RunUntil, Watch, Watched, run};
use super::poller::Poller;
use super::{Server, ServerHandle};
use crate::concurrency::Concurrency;
use crate::transport::Transport;
use crate::{Result, ServeError};

/// Servers of different transports and concurrency models under one call and one stop.
///
/// The servers share the thread that calls [`serve_forever`](Self::serve_forever). A sequential
/// server's handler runs on this thread and blocks the other servers. Use a [pool](crate::Pooled) of
/// one worker instead, which serves one request at a time beside them. A forking server needs a
/// process with one thread, so the group returns an error if another member's model has threads.
///
/// ```
/// use socketserver::{Connection, Datagram, ServerGroup, ThreadingTcpServer, ThreadingUdpServer};
/// use socketserver::handler_fn;
///
/// let tcp = ThreadingTcpServer::bind("127.0.0.1:0", handler_fn(|_: &mut Connection| Ok(())))?;
/// let udp = ThreadingUdpServer::bind("127.0.0.1:0", handler_fn(|_: &mut Datagram| Ok(())))?;
/// let mut group = ServerGroup::new().with(tcp).with(udp);
/// group.handle().shutdown();
/// group.serve_forever()?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
#[derive(Default)]
pub struct ServerGroup {
    members: Vec<Box<dyn LoopMember + Send>>,
    sidecars: Vec<Box<dyn LoopMember + Send>>,
    watches: Vec<Watch>,
    poller: Option<Poller>,
}

impl ServerGroup {
    /// Returns a group without servers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a server to the group.
    #[must_use]
    pub fn with<T: Transport, C: Concurrency>(mut self, server: Server<T, C>) -> Self {
        self.add(server);
        self
    }

    /// Adds a server to the group.
    pub fn add<T: Transport, C: Concurrency>(&mut self, server: Server<T, C>) {
        let member = self.prepare(server);
        self.members.push(member);
    }

    /// Adds a server that reports health and statistics of the others, and keeps serving during their
    /// drain. The sidecar is served as long as any other server is. Then it is closed as they were,
    /// within 0.5 s and the time to cancel its remaining requests. The group's
    /// [`handle`](Self::handle) does not control it.
    ///
    /// The sidecar shares the accept loop. If the process may have threads, serve it on a thread of its
    /// own instead, so that it replies while a sequential server is busy.
    pub fn add_sidecar<T: Transport, C: Concurrency>(&mut self, server: Server<T, C>) {
        let sidecar = self.prepare(server);
        self.sidecars.push(sidecar);
    }

    fn prepare<T: Transport, C: Concurrency>(
        &mut self,
        mut server: Server<T, C>,
    ) -> Box<dyn LoopMember + Send> {
        self.watches.append(&mut server.watches);
        // The group has one poller for all its members.
        server.poller = None;
        Box::new(server)
    }

    /// Calls `call` on the serving thread whenever `fd` is readable; see [`Server::watch`].
    pub fn watch<W: Into<Watched>>(
        &mut self,
        fd: impl Into<OwnedFd>,
        call: impl FnMut() -> Result<W> + Send + 'static,
    ) {
        self.watches.push(Watch::new(fd.into(), call));
    }

    /// Returns a handle that controls the servers which are in the group now.
    #[must_use]
    pub fn handle(&self) -> GroupHandle {
        GroupHandle(self.members.iter().map(|member| member.handle()).collect())
    }

    /// Serves until all servers have stopped. If one server fails, the others are stopped.
    ///
    /// # Errors
    /// Returns the errors of [`Server::serve_forever`].
    pub fn serve_forever(&mut self) -> Result<(), ServeError> {
        if self.members.is_empty() {
            return Ok(());
        }
        let sidecars = self.sidecars.len();
        let mut members: Vec<&mut dyn LoopMember> = Vec::new();
        for member in self.members.iter_mut().chain(&mut self.sidecars) {
            members.push(&mut **member);
        }
        let (poller, watches) = (&mut self.poller, &mut self.watches);
        run(poller, &mut members, sidecars, watches, RunUntil::Stopped)?;
        Ok(())
    }
}

impl fmt::Debug for ServerGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerGroup")
            .field("servers", &self.members.len())
            .finish_non_exhaustive()
    }
}

/// A handle on all servers of a group.
#[derive(Clone, Debug)]
pub struct GroupHandle(Vec<ServerHandle>);

impl GroupHandle {
    /// Returns the handle of each server, in the order in which the servers were added.
    #[must_use]
    pub fn handles(&self) -> &[ServerHandle] {
        &self.0
    }

    /// Requests that all servers stop; see [`ServerHandle::shutdown`].
    pub fn shutdown(&self) {
        self.0.iter().for_each(ServerHandle::shutdown);
    }

    /// Requests that all servers drain; see [`ServerHandle::drain`].
    pub fn drain(&self, timeout: Duration) {
        for handle in &self.0 {
            handle.drain(timeout);
        }
    }

    /// Makes all servers lame ducks, or ready again; see [`ServerHandle::set_lame`].
    pub fn set_lame(&self, lame: bool) {
        for handle in &self.0 {
            handle.set_lame(lame);
        }
    }

    /// Returns true if all servers are ready; see [`ServerHandle::is_ready`].
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(ServerHandle::is_ready)
    }

    /// Waits until all servers have stopped serving; see [`ServerHandle::wait`].
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.0
            .iter()
            .all(|handle| handle.wait(end.map(|end| end.saturating_duration_since(Instant::now()))))
    }
}
