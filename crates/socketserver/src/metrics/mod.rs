//! Figures of servers for whoever collects them, in the
//! [text format of Prometheus](https://prometheus.io/docs/instrumenting/exposition_formats/), and
//! whether they are ready for more.
//!
//! Figures are read from the servers' own counters when somebody asks. All that a request pays for is
//! its place in the histogram of durations, two atomic additions, and only where a server was
//! [added](Metrics::add).
//!
//! ```
//! use socketserver::metrics::Metrics;
//! use socketserver::{AtLimit, Connection, Threading, ThreadingTcpServer, handler_fn};
//! use std::time::Duration;
//!
//! let server = ThreadingTcpServer::bind("127.0.0.1:0", handler_fn(|_: &mut Connection| Ok(())))?;
//! let metrics = Metrics::new();
//! metrics.register("greeter", &server.handle());
//!
//! // GET /metrics, /livez and /readyz, from a server of its own: it answers while the other drains.
//! let few = OverloadPolicy::Queue { patience: Duration::from_secs(1), places: 8 };
//! let watched = ThreadingTcpServer::builder()
//!     .concurrency(Threading::new().max_threads(4).overload_policy(few))
//!     .bind("127.0.0.1:0", metrics.endpoint())?;
//! assert!(metrics.render().contains("socketserver_requests_active{server=\"greeter\"} 0\n"));
//! # drop(watched);
//! # Ok::<(), socketserver::BoxError>(())
//! ```
//!
//! # Metrics
//!
#![doc = include_str!("names.md")]
//!
//! `server` is the name under which a server was added. Labels are bounded: no figure is kept for a
//! peer. Every series is there from the beginning, at zero.
//!
//! The buckets of the histogram end at 1, 5, 10, 50, 100 and 500 milliseconds, 1, 5, 10, 30 and 60
//! seconds, 5 minutes and an hour.
//!
//! Under [`Forking`](crate::Forking), bytes and the failures of hooks in children are counted in the
//! children, and are lost with them.

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

/// The servers whose figures are collected. Cheap to clone; clones are the same.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    servers: RwLock<Vec<MonitoredServer>>,
    conditions: RwLock<Vec<Condition>>,
    certificates: OnceLock<Box<Certificates>>,
}

/// What has to hold for the process to be ready.
#[derive(Clone)]
struct Condition {
    name: String,
    check: Arc<Check>,
}

type Check = dyn Fn() -> Result<(), String> + Send + Sync;
type Certificates = dyn Fn() -> Vec<(String, SystemTime)> + Send + Sync;

/// A server under its name.
struct MonitoredServer {
    name: String,
    handle: ServerHandle,
    /// The most bytes received and sent that were told so far. Those of live requests and those of
    /// ended ones are read one after the other, and what ends in between is in neither: a counter
    /// must not go back for that, as this would be taken for a new start.
    told_bytes: [AtomicU64; 2],
}

impl Metrics {
    /// No servers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a server under a name, the value of the label `server`. One that was added before under
    /// the same name is replaced.
    ///
    /// From now on the server keeps the durations of its requests.
    pub fn register(&self, name: impl Into<String>, server: &ServerHandle) {
        server.0.sink.durations();
        let served = MonitoredServer {
            name: name.into(),
            handle: server.clone(),
            told_bytes: Default::default(),
        };
        let servers = &self.0.servers;
        let mut all = servers.write().unwrap_or_else(PoisonError::into_inner);
        match all.iter_mut().find(|other| other.name == served.name) {
            Some(other) => *other = served,
            None => all.push(served),
        }
    }

    /// Adds a condition for `/readyz`: it answers 503 while `check` returns an error, and its text has a
    /// line with the name and the error. One that was added before under the same name is replaced.
    ///
    /// `check` is called for each request to `/readyz`, on the worker that serves it, and should not
    /// wait. One that panics has failed.
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

    /// Sets where `socketserver_tls_certificate_end_timestamp_seconds` comes from: a name for each
    /// certificate, such as that of its file, and the end of its validity. Only the first call counts.
    /// `list` is called for each request to `/metrics`.
    pub fn certificates(
        &self,
        list: impl Fn() -> Vec<(String, SystemTime)> + Send + Sync + 'static,
    ) {
        let _ = self.0.certificates.set(Box::new(list));
    }

    /// The conditions that do not hold, each with its name and the reason.
    fn unmet(&self) -> Vec<(String, String)> {
        let conditions = &self.0.conditions;
        let all = conditions.read().unwrap_or_else(PoisonError::into_inner);
        // None is locked while it is asked.
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

    /// All figures as text, in the format's version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let certificates = self.0.certificates.get();
        let certificates = certificates.and_then(|list| catch_panic(list).ok());
        families::render(&self.servers(), &certificates.unwrap_or_default())
    }

    /// The state of each server, by name, in the order in which they were added.
    #[must_use]
    pub fn states(&self) -> Vec<(String, ServerState)> {
        let state = |served: &MonitoredServer| (served.name.clone(), served.handle.state());
        self.servers().iter().map(state).collect()
    }

    /// A factory of handlers that answer over HTTP/1.1; see [`MetricsHandler`].
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
    /// Bytes received and sent so far.
    fn bytes(&self) -> [u64; 2] {
        // In this order: what has ended is not looked at among the live ones any more.
        let ended = self.handle.counters();
        let live = self.handle.0.active_bytes();
        let now = [ended.bytes_received + live.0, ended.bytes_sent + live.1];
        let at_least = |told: &AtomicU64, now: u64| told.fetch_max(now, Ordering::Relaxed).max(now);
        std::array::from_fn(|index| at_least(&self.told_bytes[index], now[index]))
    }
}
