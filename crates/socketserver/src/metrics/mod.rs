//! Metrics of servers in the [text format of
//! Prometheus](https://prometheus.io/docs/instrumenting/exposition_formats/), and their readiness.
//!
//! The metrics are read from the servers' counters on each request to `/metrics`. For each request,
//! a [registered](Metrics::register) server records one duration in a histogram, which costs two
//! atomic additions.
//!
//! ```
//! use socketserver::metrics::Metrics;
//! use socketserver::{Connection, OverloadPolicy, Threading, ThreadingTcpServer, handler_fn};
//! use std::time::Duration;
//!
//! let server = ThreadingTcpServer::bind("127.0.0.1:0", handler_fn(|_: &mut Connection| Ok(())))?;
//! let metrics = Metrics::new();
//! metrics.register("greeter", &server.handle());
//!
//! // Serves /metrics, /livez and /readyz from a separate server, which answers during a drain.
//! let queue = OverloadPolicy::Queue { patience: Duration::from_secs(1), places: 8 };
//! let endpoint = ThreadingTcpServer::builder()
//!     .concurrency(Threading::new().max_threads(4).overload_policy(queue))
//!     .bind("127.0.0.1:0", metrics.endpoint())?;
//! assert!(metrics.render().contains("socketserver_requests_active{server=\"greeter\"} 0\n"));
//! # drop(endpoint);
//! # Ok::<(), socketserver::BoxError>(())
//! ```
//!
//! # Metrics
//!
#![doc = include_str!("names.md")]
//!
//! The label `server` is the name under which a server was registered. The number of series is
//! bounded, because no label names a peer. Every series exists from the beginning, with the value
//! 0.
//!
//! The upper bounds of the histogram's buckets are 1, 5, 10, 50, 100 and 500 milliseconds, 1, 5,
//! 10, 30 and 60 seconds, 5 minutes and 1 hour.
//!
//! Under [`Forking`](crate::Forking), children count their own bytes and hook failures, and these
//! counts are lost when the children exit.

mod encode;
mod endpoint;
mod families;
mod histogram;
mod http;
mod process;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;

pub use endpoint::MetricsHandler;
pub(crate) use histogram::Histogram;

use crate::user_code::catch_panic;
use crate::{ServerHandle, ServerState};

/// A set of servers whose metrics are collected. Clones share the same set.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    servers: RwLock<Vec<MonitoredServer>>,
    conditions: RwLock<Vec<Condition>>,
    certificates: OnceLock<Box<Certificates>>,
}

/// A condition for the process to be ready.
#[derive(Clone)]
struct Condition {
    name: String,
    check: Arc<Check>,
}

type Check = dyn Fn() -> Result<(), String> + Send + Sync;
type Certificates = dyn Fn() -> Vec<(String, SystemTime)> + Send + Sync;

/// A registered server and its name.
struct MonitoredServer {
    name: String,
    handle: ServerHandle,
    /// The highest numbers of bytes received and sent that were reported. The bytes of active and
    /// of ended requests are read one after the other, and a request that ends in between is in
    /// neither. A counter must not decrease for this reason, because Prometheus takes a decrease
    /// for a restart.
    reported_bytes: [AtomicU64; 2],
}

impl Metrics {
    /// Creates an empty set of servers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a server under a name, the value of the label `server`. Replaces a server that was
    /// registered under the same name.
    ///
    /// The server records the durations of its requests from now on.
    pub fn register(&self, name: impl Into<String>, server: &ServerHandle) {
        server.0.sink.durations();
        let monitored = MonitoredServer {
            name: name.into(),
            handle: server.clone(),
            reported_bytes: Default::default(),
        };
        let servers = &self.0.servers;
        let mut all = servers.write().unwrap_or_else(PoisonError::into_inner);
        match all.iter_mut().find(|other| other.name == monitored.name) {
            Some(other) => *other = monitored,
            None => all.push(monitored),
        }
    }

    /// Adds a condition for `/readyz`, which answers 503 while `check` returns an error. The
    /// response contains a line with the name and the error. Replaces a condition that was added
    /// under the same name.
    ///
    /// The server calls `check` for each request to `/readyz`, on the worker that serves the
    /// request, so `check` should not wait. A check that panics counts as failed.
    ///
    /// ```
    /// # use socketserver::metrics::Metrics;
    /// let metrics = Metrics::new();
    /// metrics.ready_if("the spool directory", || match std::fs::metadata("/var/spool") {
    ///     Ok(_) => Ok(()),
    ///     Err(error) => Err(error.to_string()),
    /// });
    /// ```
    pub fn ready_if(
        &self,
        name: impl Into<String>,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        let condition = Condition {
            name: name.into(),
            check: Arc::new(check),
        };
        let conditions = &self.0.conditions;
        let mut all = conditions.write().unwrap_or_else(PoisonError::into_inner);
        match all.iter_mut().find(|other| other.name == condition.name) {
            Some(other) => *other = condition,
            None => all.push(condition),
        }
    }

    /// Sets the source of `socketserver_tls_certificate_end_timestamp_seconds`. `list` returns a
    /// name for each certificate, such as its file name, and the end of its validity. The server
    /// calls `list` for each request to `/metrics`. Only the first call of this method has an
    /// effect.
    pub fn certificates(
        &self,
        list: impl Fn() -> Vec<(String, SystemTime)> + Send + Sync + 'static,
    ) {
        let _ = self.0.certificates.set(Box::new(list));
    }

    /// Returns the conditions that do not hold, each with its name and the reason.
    fn unmet(&self) -> Vec<(String, String)> {
        let conditions = &self.0.conditions;
        let all = conditions.read().unwrap_or_else(PoisonError::into_inner);
        // The lock is released before the checks run.
        let all = all.clone();
        let unmet = all.into_iter().filter_map(|condition| {
            let reason = match catch_panic(|| (condition.check)()) {
                Ok(Ok(())) => return None,
                Ok(Err(reason)) => reason,
                Err(panic) => panic.to_string(),
            };
            Some((condition.name, reason))
        });
        unmet.collect()
    }

    /// Returns all metrics as text, in version 0.0.4 of the format.
    #[must_use]
    pub fn render(&self) -> String {
        let certificates = self.0.certificates.get();
        let certificates = certificates.and_then(|list| catch_panic(list).ok());
        families::render(&self.servers(), &certificates.unwrap_or_default())
    }

    /// Returns the state of each server by name, in the order of registration.
    #[must_use]
    pub fn states(&self) -> Vec<(String, ServerState)> {
        let state =
            |monitored: &MonitoredServer| (monitored.name.clone(), monitored.handle.state());
        self.servers().iter().map(state).collect()
    }

    /// Returns a factory of handlers that serve the metrics over HTTP/1.1; see [`MetricsHandler`].
    pub fn endpoint(&self) -> impl Fn() -> MetricsHandler + Clone + Send + Sync + 'static + use<> {
        let metrics = self.clone();
        move || MetricsHandler::new(metrics.clone())
    }

    fn servers(&self) -> RwLockReadGuard<'_, Vec<MonitoredServer>> {
        let servers = &self.0.servers;
        servers.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.states().into_iter().map(|(name, _)| name).collect();
        f.debug_tuple("Metrics").field(&names).finish()
    }
}

impl MonitoredServer {
    /// Returns the bytes received and sent so far.
    fn bytes(&self) -> [u64; 2] {
        // The order matters: a request that has ended is no longer among the active requests, so
        // its bytes are not counted twice.
        let ended = self.handle.counters();
        let live = self.handle.0.active_bytes();
        let now = [ended.bytes_received + live.0, ended.bytes_sent + live.1];
        let at_least =
            |reported: &AtomicU64, now: u64| reported.fetch_max(now, Ordering::Relaxed).max(now);
        std::array::from_fn(|index| at_least(&self.reported_bytes[index], now[index]))
    }
}
