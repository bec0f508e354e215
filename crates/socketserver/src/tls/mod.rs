//! TLS: certificates, the handshake, and the negotiated parameters of a connection.
//!
//! The worker that serves a connection performs the handshake; the accept loop never does. The
//! handshake has its own deadline. A slow TLS handshake does not occupy a pool thread.

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

/// The TLS configuration of a server: see [`Builder::tls`](crate::Builder::tls). Clones share one
/// state.
///
/// Accepts any [`ServerConfig`]; [`TlsIdentity`] creates one from files. Handlers use the same
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
    /// The time of the last check of `dates`, in seconds since 1970.
    looked_at: AtomicU64,
}

impl Tls {
    /// Creates a configuration with a handshake timeout of 10 s and at most 1,024 concurrent
    /// handshakes.
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

    /// Sets the time limit of a handshake, regardless of what the client sends. Defaults to 10 s.
    ///
    /// Does not change existing clones.
    #[must_use]
    pub fn handshake_timeout(self, limit: Duration) -> Self {
        self.with(|shared| shared.handshake_timeout = limit)
    }

    /// Sets the maximum number of concurrent handshakes. Defaults to 1,024; 0 counts as 1.
    /// being served need. When a client comes while there are as many, one that takes longer than half a second is
    /// cut, the oldest, or one of an address that has three more than the client's; if there is none, the
    /// client is closed at once. 0 is taken
    /// once.
    ///
    /// Does not change existing clones.
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

    /// Replaces certificates and all other settings for new connections. Existing connections keep
    /// their settings.
    pub fn reload(&self, config: impl Into<Arc<ServerConfig>>) {
        let mut current = self
            .0
            .config
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = config.into();
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
        let current = self.0.config.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// Does what is due and what a child would do for itself alone: looks at the dates of certificates,
    /// and lets the keys of tickets be replaced. A process without handshakes of its own
    /// must call this method. Otherwise each forked child inherits the first key, and a stolen key
    /// decrypts every resumed session.
    pub(crate) fn prepare_fork(&self) {
        self.look_at_dates();
        let config = self.config();
        if config.ticketer.enabled() {
            // rustls replaces the key only when the key is used.
            let _ = config.ticketer.encrypt(&[]);
        }
    }

    pub(crate) fn time_for_handshake(&self) -> Duration {
        self.0.handshake_timeout
    }

    /// Begins the handshake with a client.
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

/// A handshake in progress.
pub(crate) struct Handshake {
    session: Session,
    _place: Place,
    has_displaced: bool,
}

impl Handshake {
    /// Continues the handshake with the bytes that have arrived. Returns
    /// [`io::ErrorKind::WouldBlock`] if the peer must send more.
    pub(crate) fn advance(&mut self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        self.session.advance_handshake(wire, limits)
    }

    /// Whether another one was cut for its place.
    pub(crate) fn has_displaced(&self) -> bool {
        self.has_displaced
    }

    pub(crate) fn into_session(self) -> Session {
        self.session
    }
}

/// Returns the cryptography provider of TLS.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
