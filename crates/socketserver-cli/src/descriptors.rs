//! The limit of open descriptors: raises the soft limit to the need of the servers.
//!
//! The soft limit is 1,024 almost everywhere, for programs that call `select(2)`, which accepts no
//! higher numbers. This program does not call it. Programs that it starts may, and get the original
//! limit.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for listeners, epoll sets, wake-ups, logs, certificate files, and clients of
/// metrics.
const RESERVE: u64 = 128;

/// The number of descriptors that the servers of a command may open at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// Connections, both served and waiting.
    pub(crate) connections: u64,
    /// Further descriptors that requests open.
    pub(crate) besides: u64,
}

static BEFORE: OnceLock<u64> = OnceLock::new();

/// Returns the original soft limit of this process, if it was changed.
pub(crate) fn before() -> Option<u64> {
    BEFORE.get().copied()
}

/// Raises the soft limit as far as needed and allowed, and logs the change.
pub(crate) fn provide(need: Need) {
    let limit = getrlimit(Resource::Nofile);
    let Some(Step { from, to, needed }) = step(limit, need) else {
        return;
    };
    if to > from {
        let raised = Rlimit {
            current: Some(to),
            ..limit
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the soft limit of descriptors remains {from}, and {needed} may be needed");
            return;
        }
        let _ = BEFORE.set(from);
    }
    let connections = need.connections;
    if to < needed {
        tracing::warn!(
            "{connections} connections at once may need {needed} descriptors, and the hard limit is \
             {to}: further clients wait or are rejected; raise it (ulimit -Hn, LimitNOFILE=), or \
             lower --workers or --max-active"
        );
    } else {
        tracing::info!(
            "the soft limit of descriptors was raised from {from} to {to}, for up to {connections} \
             connections at once"
        );
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Step {
    from: u64,
    to: u64,
    needed: u64,
}

/// Returns the change to make, or `None` if the limit suffices.
fn step(limit: Rlimit, need: Need) -> Option<Step> {
    let needed = RESERVE + need.connections + need.besides;
    // A limit without a value is unlimited.
    let from = limit.current.filter(|&soft| soft < needed)?;
    let to = limit.maximum.map_or(needed, |hard| needed.min(hard));
    Some(Step { from, to, needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_raised_as_far_as_needed_and_allowed() {
        let need = Need {
            connections: 1000,
            besides: 100,
        };
        let limit = |current, maximum| Rlimit { current, maximum };
        let to = |to| {
            Some(Step {
                from: 64,
                to,
                needed: 1228,
            })
        };
        assert_eq!(step(limit(Some(64), Some(1 << 20)), need), to(1228));
        assert_eq!(step(limit(Some(64), None), need), to(1228));
        assert_eq!(step(limit(Some(64), Some(512)), need), to(512));
        assert_eq!(
            step(limit(Some(64), Some(64)), need),
            to(64),
            "the shortage is logged"
        );
        assert_eq!(step(limit(Some(1228), Some(1228)), need), None);
        assert_eq!(step(limit(None, None), need), None);
    }
}
