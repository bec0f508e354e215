//! Sessions: what handlers remember of a peer from one datagram to the next. Which peer it is, and
//! whether it is itself, is for the application to find out.

mod table;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use table::{Place, Table};

use crate::Address;

/// A table from peers' addresses to states of the type `S`, for a server whose requests are
/// datagrams: bounded, and without those who have been silent for too long.
///
/// Handlers share it, by a clone or an [`Arc`] alike. A state is handed out as an `Arc`: no lock is
/// held while the application uses it, or makes it, or drops it. Two datagrams of one peer may be
/// handled at the same time, so a state that changes has its own lock or atomics. Under `Green`, a
/// lock that is held across a wait has to be one of `greenroom::sync`.
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
/// A newcomer is refused, and nobody is thrown out for him. The source of a datagram is easily
/// forged: were the least recently used session to go, a stranger with a list of made-up addresses
/// would end those of everybody who is real. As it is, he can only keep newcomers out, and only
/// for as long as he goes on, as what he has made expires. Where that matters, make a session only
/// for a peer that has brought a cookie back (see
/// [`mark_validated`](crate::Datagram::mark_validated)).
///
/// # When a session ends
///
/// When its peer was silent for [`SessionLimits::idle`], or by [`remove`](Self::remove). Nothing runs
/// in the background for it: whoever touches the table takes out what has expired, at a cost that
/// does not depend on how many there are. A handler that still has the state keeps it to its own end;
/// the next datagram of that peer begins a new session.
///
/// Under [`Forking`](crate::Forking) it cannot work: each child has a copy of the table as the parent
/// has it, which is empty, and takes what it adds with it.
pub struct Sessions<S>(Arc<Shared<S>>);

struct Shared<S> {
    limits: SessionLimits,
    table: Mutex<Table<S>>,
}

/// How many sessions there may be, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionLimits {
    /// Sessions in all: 10,000 by default.
    pub sessions: usize,
    /// Sessions from one IP address, or from one IPv6 network of 64 bits: 100 by default, as many
    /// peers may share an address behind a translator.
    pub per_address: usize,
    /// How long a peer may be silent: two minutes by default. A translator of addresses may forget a
    /// peer after that, and give it another port
    /// ([RFC 4787, section 4.3](https://www.rfc-editor.org/rfc/rfc4787#section-4.3)).
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
    /// Sets how many there may be.
    #[must_use]
    pub const fn sessions(mut self, sessions: usize) -> Self {
        self.sessions = sessions;
        self
    }

    /// Sets how many there may be from one address.
    #[must_use]
    pub const fn per_address(mut self, sessions: usize) -> Self {
        self.per_address = sessions;
        self
    }

    /// Sets how long a peer may be silent.
    #[must_use]
    pub const fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }
}

/// Why there is no session for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There are as many as [`SessionLimits::sessions`] allows.
    #[error("no session for a newcomer: the table is full; raise `sessions`, or shorten `idle`")]
    Full,
    /// There are as many from its address as [`SessionLimits::per_address`] allows.
    #[error("no session for a newcomer: there are too many from its address already")]
    AddressFull,
    /// It is a Unix socket without a name: there is nothing to know it by.
    #[error("no session for a peer without a name: a Unix client must bind its socket first")]
    Unnamed,
}

impl<S> Sessions<S> {
    /// An empty table with the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(SessionLimits::default())
    }

    /// An empty table.
    #[must_use]
    pub fn with_limits(limits: SessionLimits) -> Self {
        let table = Mutex::new(Table::default());
        Self(Arc::new(Shared { limits, table }))
    }

    /// The state of a peer's session, which goes on from now; `None` if it has none, or has been
    /// silent for too long.
    #[must_use]
    pub fn get(&self, peer: &Address) -> Option<Arc<S>> {
        self.with_table(|table, now| table.touch(peer, now))
    }

    /// The state of a peer's session; begins one, if there is none.
    ///
    /// When two datagrams of a new peer come at once, both may call `make`; one of the two states is
    /// dropped, and both handlers get the other one.
    ///
    /// # Errors
    /// [`SessionError`]; `make` is not called then, or in vain if the last place was taken
    /// meanwhile.
    pub fn get_or_insert_with(
        &self,
        peer: &Address,
        make: impl FnOnce() -> S,
    ) -> Result<Arc<S>, SessionError> {
        if peer.is_unnamed() {
            return Err(SessionError::Unnamed);
        }
        let limits = &self.0.limits;
        let place = self.with_table(|table, now| table.place(peer, limits, now));
        if let Place::Taken(state) = place? {
            return Ok(state);
        }
        // Application code: not under the lock.
        let state = Arc::new(make());
        self.with_table(|table, now| match table.place(peer, limits, now)? {
            Place::Taken(state) => Ok(state),
            Place::Free => {
                table.insert(peer, state.clone(), now);
                Ok(state.clone())
            }
        })
    }

    /// Ends a peer's session, and returns its state.
    pub fn remove(&self, peer: &Address) -> Option<Arc<S>> {
        self.with_table(|table, _| table.remove(peer))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.with_table(|table, _| table.len())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops the states of those who have been silent for too long, as any other call does. For
    /// [`service_actions`](crate::Builder::service_actions), if a state holds something that is
    /// missed elsewhere while nobody sends anything.
    pub fn expire(&self) {
        self.with_table(|_, _| ());
    }

    /// Calls `look` with the table after what has expired was taken out of it. The states that go are
    /// dropped when the lock is free again: that may run code of the application.
    fn with_table<R>(&self, look: impl FnOnce(&mut Table<S>, Instant) -> R) -> R {
        let (result, expired) = {
            // Nothing under it panics but for want of memory, and it is whole after every step.
            let table = &mut *self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the lock, so that the order of touches is that of their times.
            let now = Instant::now();
            let expired = table.expire(self.0.limits.idle, now);
            (look(table, now), expired)
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
