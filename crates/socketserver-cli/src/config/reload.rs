//! The file once more, while serving: what has changed is applied to all endpoints, or nothing is.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use socketserver::{GroupHandle, Tls};

use super::{Effective, Origin, Source};
use crate::endpoint::Endpoint;
use crate::{logging, serve, service_manager};

/// What it takes for a changed option to have an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    AtOnce,
    /// The next connection or datagram. Those that are being served go on as they began.
    NextRequest,
    Restart,
}

/// What a key does on reload. The table in the README says the same.
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

/// Reloads the configuration of servers that are running. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Reloader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    group: GroupHandle,
    endpoints: Vec<Endpoint>,
    tls: Option<Tls>,
    /// What the servers run with. Held during a reload: one comes after the other.
    running: Mutex<Effective>,
}

/// What a reload has found.
struct Changes {
    applied: Vec<String>,
    /// These take a restart.
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

    /// Reads the file and applies what has changed; logs what came of it, and says the same to
    /// whoever asked.
    pub(crate) fn reload(&self) -> String {
        service_manager::reloading();
        let outcome = self.apply();
        match &outcome {
            Ok(_) => service_manager::ready(),
            Err(error) => {
                // One line: the status has no more.
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
            let told = format!("changed, but takes a restart: {}", pending.join(", "));
            tracing::warn!("{told}");
            answer = format!("{answer}{told}\n");
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
        let program = program.context("it is not for a server")?;
        // What could not be started should not be taken for good until it has to be.
        program.check()?;
        program.server().check()?;
        // Limits of zero are what would be refused here, and they were refused before: from here on
        // nothing fails, and all endpoints change or none.
        let options = program.server();
        // Certificates may have been renewed under the same names.
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
