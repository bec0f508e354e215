//! TLS: certificates, the handshake, and what a connection knows of it afterwards.
//!
//! The handshake is done by whoever serves the connection, never by the accept loop. It has a deadline
//! of its own, and whoever is slow in it holds no thread of a pool.

mod dates;
mod identity;
mod places;
mod session;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::{ServerConfig, ServerConnection};

pub use dates::CertificateDates;
pub use identity::{TlsConfigError, TlsIdentity};
pub(crate) use places::Holder;
use places::{Place, Places};
pub use session::TlsInfo;
pub(crate) use session::{Session, Wire};

use crate::timeouts::Limits;

/// A server's side of TLS: see [`Builder::tls`](crate::Builder::tls). Clones share one state.
///
/// Any [`ServerConfig`] will do; [`TlsIdentity`] makes one of files. Handlers see the same
/// [`Connection`](crate::Connection) as without TLS.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HANDSHAKES: usize = 1024;

struct Shared {
    config: RwLock<Arc<ServerConfig>>,
    handshake_timeout: Duration,
    max_handshakes: usize,
    handshakes: Arc<Places>,
    dates: RwLock<Vec<CertificateDates>>,
    /// When it was looked at them last, in seconds since 1970.
    looked_at: AtomicU64,
}

impl Tls {
    /// With 10 s for a handshake, and 1,024 handshakes at once.
    #[must_use]
    pub fn new(config: impl Into<Arc<ServerConfig>>) -> Self {
        Self(Arc::new(Shared {
            config: RwLock::new(config.into()),
            handshake_timeout: HANDSHAKE_TIMEOUT,
            max_handshakes: MAX_HANDSHAKES,
            handshakes: Arc::default(),
            dates: RwLock::default(),
            looked_at: AtomicU64::new(0),
        }))
    }

    /// How long a client may take for the handshake, whatever it sends meanwhile.
    ///
    /// Clones that were made before are not changed.
    #[must_use]
    pub fn handshake_timeout(self, limit: Duration) -> Self {
        self.with(|shared| shared.handshake_timeout = limit)
    }

    /// How many handshakes may be under way at once. They cost processor time, which those who are
    /// being served need. When a client comes while there are as many, one that takes longer than half a second is
    /// cut, the oldest, or one of an address that has three more than the client's; if there is none, the
    /// client is closed at once. 0 is taken
    /// as 1.
    ///
    /// Clones that were made before are not changed.
    #[must_use]
    pub fn max_handshakes(self, max: usize) -> Self {
        self.with(|shared| shared.max_handshakes = max.max(1))
    }

    fn with(self, change: impl FnOnce(&mut Shared)) -> Self {
        let mut shared = Shared {
            config: RwLock::new(self.config()),
            handshake_timeout: self.0.handshake_timeout,
            max_handshakes: self.0.max_handshakes,
            handshakes: Arc::default(),
            dates: RwLock::new(self.dates()),
            looked_at: AtomicU64::new(self.0.looked_at.load(Ordering::Relaxed)),
        };
        change(&mut shared);
        Self(Arc::new(shared))
    }

    /// Replaces certificates and all else, for new connections. Those that are there go on as they
    /// were.
    pub fn reload(&self, config: impl Into<Arc<ServerConfig>>) {
        let mut present = self
            .0
            .config
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *present = config.into();
    }

    /// Sets which certificates are served, and logs a warning for each that is not valid, or for less
    /// than 14 days: now, and once a day with the next handshake. [`TlsIdentity::dates`] has them.
    ///
    /// Clones that were made before are changed, too.
    pub fn watch_dates(&self, dates: Vec<CertificateDates>) {
        dates::warn(&dates);
        let mut present = self.0.dates.write().unwrap_or_else(PoisonError::into_inner);
        *present = dates;
        self.is_day_over();
    }

    /// Returns the dates that [`watch_dates`](Self::watch_dates) has set.
    #[must_use]
    pub fn dates(&self) -> Vec<CertificateDates> {
        let present = self.0.dates.read().unwrap_or_else(PoisonError::into_inner);
        present.clone()
    }

    /// Whether the certificates were not looked at for a day; from now on they were.
    fn is_day_over(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        let before = self.0.looked_at.load(Ordering::Relaxed);
        let is_over = now >= before.saturating_add(dates::AGAIN.as_secs());
        // Only one of several tells.
        is_over
            && (self.0.looked_at)
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    fn look_at_dates(&self) {
        if self.is_day_over() {
            dates::warn(&self.dates());
        }
    }

    fn config(&self) -> Arc<ServerConfig> {
        let present = self.0.config.read().unwrap_or_else(PoisonError::into_inner);
        present.clone()
    }

    /// Does what is due and what a child would do for itself alone: looks at the dates of certificates,
    /// and lets the keys of tickets be replaced. A process that shakes no hands itself
    /// has to ask for it: otherwise each forked child gets the first key, and a key that is stolen opens
    /// every session that was resumed.
    pub(crate) fn prepare_fork(&self) {
        self.look_at_dates();
        let config = self.config();
        if config.ticketer.enabled() {
            // rustls replaces the key when it is used, and no sooner.
            let _ = config.ticketer.encrypt(&[]);
        }
    }

    pub(crate) fn time_for_handshake(&self) -> Duration {
        self.0.handshake_timeout
    }

    /// Begins to shake hands with whoever has connected.
    pub(crate) fn begin(&self, holder: Holder) -> io::Result<Handshake> {
        self.look_at_dates();
        let max = self.0.max_handshakes;
        let Some((place, has_displaced)) = self.0.handshakes.take(holder, max) else {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "as many TLS handshakes are under way as may be",
            ));
        };
        let state = ServerConnection::new(self.config()).map_err(io::Error::other)?;
        Ok(Handshake {
            session: Session::new(state),
            _place: place,
            has_displaced,
        })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("handshake_timeout", &self.0.handshake_timeout)
            .field("max_handshakes", &self.0.max_handshakes)
            .finish_non_exhaustive()
    }
}

/// A handshake that is under way.
pub(crate) struct Handshake {
    session: Session,
    _place: Place,
    has_displaced: bool,
}

impl Handshake {
    /// Goes on with what has arrived; fails as [`io::ErrorKind::WouldBlock`] if the peer has to say
    /// more.
    pub(crate) fn advance(&mut self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        self.session.shake_hands(wire, limits)
    }

    /// Whether another one was cut for its place.
    pub(crate) fn has_displaced(&self) -> bool {
        self.has_displaced
    }

    pub(crate) fn into_session(self) -> Session {
        self.session
    }
}

/// What TLS is computed by.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
