//! Reloads of the configuration file. All changes are applied to all endpoints, or none.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use socketserver::{GroupHandle, Tls};

use super::{Effective, Origin, Source};
use crate::endpoint::Endpoint;
use crate::{logging, serve, service_manager};

/// The moment at which a changed option takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    AtOnce,
    /// From the next connection or datagram on. Current requests keep their options.
    NextRequest,
    Restart,
}

/// Returns the effect of a key on reload. The table in the README states the same.
pub(crate) fn effect(key: &str) -> Effect {
    match key {
        "log-level" => Effect::AtOnce,
        "allow" | "deny" | "max-active" | "max-per-peer" | "rate" | "rate-per-peer"
        | "first-byte-timeout" | "idle-timeout" | "write-timeout" | "request-timeout"
        | "min-receive-rate" | "min-send-rate" | "tls-cert" | "tls-key" | "tls-client-ca" => {
            Effect::NextRequest
        }
        _ => Effect::Restart,
    }
}

/// A handle that reloads the configuration of running servers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Reloader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    group: GroupHandle,
    endpoints: Vec<Endpoint>,
    tls: Option<Tls>,
    /// The options that the servers use. The lock is held during a reload, so that reloads do not
    /// overlap.
    running: Mutex<Effective>,
}

/// The changes that a reload has found.
struct Changes {
    applied: Vec<String>,
    /// The keys that require a restart.
    pending: Vec<String>,
}

impl Reloader {
    pub(crate) fn new(
        origin: &Origin,
        group: GroupHandle,
        endpoints: Vec<Endpoint>,
        tls: Option<Tls>,
    ) -> Self {
        Self(Arc::new(Inner {
            source: origin.source.clone(),
            group,
            endpoints,
            tls,
            running: Mutex::new(origin.effective.clone()),
        }))
    }

    /// Reads the file, applies the changes, and logs and returns the result.
    pub(crate) fn reload(&self) -> String {
        service_manager::reloading();
        let outcome = self.apply();
        match &outcome {
            Ok(_) => service_manager::ready(),
            Err(error) => {
                // The status of the service manager is a single line.
                let why = format!("{error:#}").replace('\n', " ");
                service_manager::ready_but(&format!("serving; not reloaded: {why}"));
            }
        }
        let Changes { applied, pending } = match outcome {
            Ok(changes) => changes,
            Err(error) => {
                tracing::error!("not reloaded, everything stays as it was: {error:#}");
                return format!("not reloaded, everything stays as it was: {error:#}\n");
            }
        };
        let mut answer = match applied.join(", ") {
            none if none.is_empty() => "reloaded; nothing has changed that can be applied\n".into(),
            changed => format!("reloaded; changed: {changed}\n"),
        };
        tracing::info!("{}", answer.trim_end());
        if !pending.is_empty() {
            let note = format!("changed, but takes a restart: {}", pending.join(", "));
            tracing::warn!("{note}");
            answer = format!("{answer}{note}\n");
        }
        answer
    }

    fn apply(&self) -> anyhow::Result<Changes> {
        let Inner {
            source,
            group,
            endpoints,
            tls,
            running,
        } = &*self.0;
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = source.load()?;
        let program = start.cli.command.program();
        let program = program.context("the command is not a server")?;
        // The options are checked as for a start, so that the next restart does not fail.
        program.check()?;
        program.server().check()?;
        // The setters reject only limits of zero, which the parser has already rejected. From here
        // on nothing fails, so that either all endpoints change or none.
        let options = program.server();
        // Certificates may have been renewed in the same files.
        let renew = options.tls.reload(tls.as_ref())?;
        for (handle, endpoint) in group.handles().iter().zip(endpoints) {
            serve::apply(options, handle, endpoint)?;
        }
        renew();
        logging::set_level(&start.cli.logging);

        let new = start.effective.unwrap_or_default();
        let is_pending = |key: &str| effect(key) == Effect::Restart;
        let (pending, applied) = running
            .changes(&new)
            .into_iter()
            .map(ToOwned::to_owned)
            .partition(|key: &String| is_pending(key));
        running.adopt(&new, |key| !is_pending(key));
        Ok(Changes { applied, pending })
    }
}
