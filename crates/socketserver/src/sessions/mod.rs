//! Sessions: state that handlers keep for a peer from one datagram to the next. The application
//! must authenticate the peer itself.

mod table;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use table::{Lookup, Table};

use crate::Address;

/// A bounded table from peers' addresses to states of the type `S`, for a server of datagrams.
/// Sessions of peers that are silent for too long expire.
///
/// Handlers share the table through a clone or an [`Arc`]. The table returns each state as an
/// `Arc`. No lock is held while the application creates, uses or drops a state. Handlers may
/// process two datagrams of one peer at the same time, so a mutable state needs its own lock or
/// atomics. Under `Green`, a lock that is held across a wait must be a lock of `greenroom::sync`.
///
/// ```
/// use socketserver::{Datagram, Sessions, ThreadingUdpServer, handler_fn};
/// use std::net::UdpSocket;
/// use std::sync::atomic::{AtomicU32, Ordering};
///
/// let sessions = Sessions::<AtomicU32>::new();
/// let mut server = ThreadingUdpServer::bind("127.0.0.1:0", handler_fn(move |packet: &mut Datagram| {
///     let seen = sessions.get_or_insert_with(packet.peer_addr(), AtomicU32::default)?;
///     let nth = seen.fetch_add(1, Ordering::Relaxed) + 1;
///     Ok(packet.reply(format!("your number {nth}").as_bytes())?)
/// }))?;
/// let (address, handle) = (server.local_addr().as_inet().unwrap(), server.handle());
/// let serving = std::thread::spawn(move || server.serve_forever());
///
/// let client = UdpSocket::bind("127.0.0.1:0")?;
/// let mut answer = [0; 100];
/// for expected in ["your number 1", "your number 2"] {
///     client.send_to(b"hello", address)?;
///     let n = client.recv(&mut answer)?;
///     assert_eq!(&answer[..n], expected.as_bytes());
/// }
/// handle.shutdown();
/// serving.join().unwrap()?;
/// # Ok::<(), socketserver::BoxError>(())
/// ```
///
/// # When the table is full
///
/// The table rejects new peers and keeps the existing sessions. The source address of a datagram is
/// easy to forge. If the table evicted the least recently used session, an attacker with forged
/// addresses could end the sessions of all real peers. Without eviction, the attacker can only keep
/// new peers out, and only during the attack, because the sessions of the forged addresses expire.
/// If this matters, create a session only for a peer that has returned a cookie (see
/// [`mark_validated`](crate::Datagram::mark_validated)).
///
/// # When a session ends
///
/// A session ends when its peer was silent for [`SessionLimits::idle`], or by
/// [`remove`](Self::remove). No background task runs: each call on the table removes expired
/// sessions, in constant time per session. A handler that holds the state keeps it until the
/// handler ends. The next datagram of the peer begins a new session.
///
/// Sessions do not work under [`Forking`](crate::Forking): each child gets a copy of the parent's
/// empty table, and its changes are lost when the child exits.
pub struct Sessions<S>(Arc<Shared<S>>);

struct Shared<S> {
    limits: SessionLimits,
    table: Mutex<Table<S>>,
}

/// Limits on the number and the idle time of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionLimits {
    /// The maximum number of sessions. Defaults to 10,000.
    pub sessions: usize,
    /// The maximum number of sessions per IPv4 address or per IPv6 network of 64 bits. Defaults to
    /// 100, because many peers can share an address behind a NAT.
    pub per_address: usize,
    /// The time after which the session of a silent peer ends. Defaults to 2 min. A NAT may drop a
    /// mapping after 2 min and give the peer another port ([RFC 4787, section
    /// 4.3](https://www.rfc-editor.org/rfc/rfc4787#section-4.3)).
    pub idle: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            sessions: 10_000,
            per_address: 100,
            idle: Duration::from_secs(120),
        }
    }
}

impl SessionLimits {
    /// Sets the maximum number of sessions.
    #[must_use]
    pub const fn sessions(mut self, sessions: usize) -> Self {
        self.sessions = sessions;
        self
    }

    /// Sets the maximum number of sessions per address.
    #[must_use]
    pub const fn per_address(mut self, sessions: usize) -> Self {
        self.per_address = sessions;
        self
    }

    /// Sets the time after which the session of a silent peer ends.
    #[must_use]
    pub const fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }
}

/// The reason why a peer gets no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The table has as many sessions as [`SessionLimits::sessions`] allows.
    #[error("no session for a new peer: the table is full; raise `sessions`, or shorten `idle`")]
    Full,
    /// The peer's address has as many sessions as [`SessionLimits::per_address`] allows.
    #[error("no session for a new peer: its address has too many sessions; raise `per_address`")]
    AddressFull,
    /// The peer is an unnamed Unix socket, so it has no address to identify it.
    #[error("no session for an unnamed peer: a Unix client must bind its socket first")]
    Unnamed,
}

impl<S> Sessions<S> {
    /// Creates an empty table with the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(SessionLimits::default())
    }

    /// Creates an empty table with the given limits.
    #[must_use]
    pub fn with_limits(limits: SessionLimits) -> Self {
        let table = Mutex::new(Table::default());
        Self(Arc::new(Shared { limits, table }))
    }

    /// Returns the state of a peer's session and restarts its idle time. Returns `None` if the peer
    /// has no session or its session has expired.
    #[must_use]
    pub fn get(&self, peer: &Address) -> Option<Arc<S>> {
        self.with_table(|table, now| table.touch(peer, now))
    }

    /// Returns the state of a peer's session. Creates a session with the state of `make` if there
    /// is none.
    ///
    /// If two datagrams of a new peer arrive at once, both handlers may call `make`. Both handlers
    /// then get the same state, and the other state is dropped.
    ///
    /// # Errors
    /// Returns a [`SessionError`] if the peer can have no session. Usually `make` is not called in
    /// this case. If another peer takes the last slot while `make` runs, its result is dropped.
    pub fn get_or_insert_with(
        &self,
        peer: &Address,
        make: impl FnOnce() -> S,
    ) -> Result<Arc<S>, SessionError> {
        if peer.is_unnamed() {
            return Err(SessionError::Unnamed);
        }
        let limits = &self.0.limits;
        let lookup = self.with_table(|table, now| table.lookup(peer, limits, now));
        if let Lookup::Found(state) = lookup? {
            return Ok(state);
        }
        // Application code runs without the lock.
        let state = Arc::new(make());
        self.with_table(|table, now| match table.lookup(peer, limits, now)? {
            Lookup::Found(state) => Ok(state),
            Lookup::Vacant => {
                table.insert(peer, state.clone(), now);
                Ok(state.clone())
            }
        })
    }

    /// Ends a peer's session and returns its state.
    pub fn remove(&self, peer: &Address) -> Option<Arc<S>> {
        self.with_table(|table, _| table.remove(peer))
    }

    /// Returns the number of sessions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.with_table(|table, _| table.len())
    }

    /// Returns true if there are no sessions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops the states of expired sessions, like every other call on the table. Call this from
    /// [`service_actions`](crate::Builder::service_actions) if a state holds a resource that must
    /// be freed even when no datagrams arrive.
    pub fn expire(&self) {
        self.with_table(|_, _| ());
    }

    /// Removes expired sessions and calls `access` with the table. The removed states are dropped
    /// after the lock is released, because their `Drop` may run application code.
    fn with_table<R>(&self, access: impl FnOnce(&mut Table<S>, Instant) -> R) -> R {
        let (result, expired) = {
            // Code under the lock panics only when memory allocation fails, and the table is
            // consistent after every step.
            let table = &mut *self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
            // Taken under the lock, so that sessions are ordered by time.
            let now = Instant::now();
            let expired = table.expire(self.0.limits.idle, now);
            (access(table, now), expired)
        };
        drop(expired);
        result
    }
}

impl<S> Clone for Sessions<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Default for Sessions<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> fmt::Debug for Sessions<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("len", &self.len())
            .field("limits", &self.0.limits)
            .finish()
    }
}
