//! Several servers, of whatever kinds, in one loop.

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
/// They share the thread that calls [`serve_forever`](Self::serve_forever). A sequential server's
/// handler runs on it, and holds up the others meanwhile: give it a
/// [pool](crate::Pooled) of one worker instead to serve one request at a time beside them. A
/// forking server forks only while the process has one thread, and does not go with models that
/// have threads: the group refuses to serve.
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
    /// A group without servers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a server into the group.
    #[must_use]
    pub fn with<T: Transport, C: Concurrency>(mut self, server: Server<T, C>) -> Self {
        self.add(server);
        self
    }

    /// Takes a server into the group.
    pub fn add<T: Transport, C: Concurrency>(&mut self, server: Server<T, C>) {
        let member = self.take_in(server);
        self.members.push(member);
    }

    /// Takes in a server that tells how the others fare, and so outlives their drain. It is served for
    /// as long as any of them is, and is then closed as they were, within half a second and what it
    /// takes to cut who is left. The group's [`handle`](Self::controller) has nothing to do with
    /// it.
    ///
    /// It shares the loop: where the process may have threads, a server that is served by a thread of
    /// its own is better, as it also answers while a sequential server is busy.
    pub fn add_sidecar<T: Transport, C: Concurrency>(&mut self, server: Server<T, C>) {
        let sidecar = self.take_in(server);
        self.sidecars.push(sidecar);
    }

    fn take_in<T: Transport, C: Concurrency>(
        &mut self,
        mut server: Server<T, C>,
    ) -> Box<dyn LoopMember + Send> {
        self.watches.append(&mut server.watches);
        // The group has one for all.
        server.poller = None;
        Box::new(server)
    }

    /// Has the serving thread call `call` whenever `fd` is readable; see [`Server::watch`].
    pub fn watch<W: Into<Watched>>(
        &mut self,
        fd: impl Into<OwnedFd>,
        call: impl FnMut() -> Result<W> + Send + 'static,
    ) {
        self.watches.push(Watch::new(fd.into(), call));
    }

    /// The handle that stops the servers which are in the group now.
    #[must_use]
    pub fn handle(&self) -> GroupHandle {
        GroupHandle(self.members.iter().map(|member| member.handle()).collect())
    }

    /// Serves until all of them have stopped. If one fails, the others are stopped.
    ///
    /// # Errors
    /// As for [`Server::serve_forever`].
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

/// The controllers of a group's servers, as one.
#[derive(Clone, Debug)]
pub struct GroupHandle(Vec<ServerHandle>);

impl GroupHandle {
    /// Each server's own controller, in the order in which they were added.
    #[must_use]
    pub fn handles(&self) -> &[ServerHandle] {
        &self.0
    }

    /// Asks all of them to stop; see [`ServerHandle::shutdown`].
    pub fn shutdown(&self) {
        self.0.iter().for_each(ServerHandle::shutdown);
    }

    /// Asks all of them to drain; see [`ServerHandle::drain`].
    pub fn drain(&self, timeout: Duration) {
        for handle in &self.0 {
            handle.drain(timeout);
        }
    }

    /// Makes all of them lame, or ready again; see [`ServerHandle::set_lame`].
    pub fn set_lame(&self, lame: bool) {
        for handle in &self.0 {
            handle.set_lame(lame);
        }
    }

    /// Whether all of them are ready; see [`ServerHandle::is_ready`].
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(ServerHandle::is_ready)
    }

    /// Waits until none of them serves; see [`ServerHandle::wait`].
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.0
            .iter()
            .all(|handle| handle.wait(end.map(|end| end.saturating_duration_since(Instant::now()))))
    }
}
