//! How many descriptors the process may have open: the soft limit is raised to what the limits of its
//! servers need.
//!
//! The soft limit is 1,024 almost everywhere, for the sake of programs that call `select(2)`, which
//! knows no higher numbers. This one does not; what it starts may, and gets the limit of before.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For listeners, epoll sets, wake-ups, logs, files of certificates, and clients of metrics.
const RESERVE: u64 = 128;

/// What the servers of a command may have open at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// Connections, whether they are being served or wait.
    pub(crate) connections: u64,
    /// What their requests have open besides.
    pub(crate) besides: u64,
}

static BEFORE: OnceLock<u64> = OnceLock::new();

/// The soft limit that this process was started with, if it has another one now.
pub(crate) fn before() -> Option<u64> {
    BEFORE.get().copied()
}

/// Raises the soft limit as far as is needed and allowed, and tells of it in the log.
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
            tracing::warn!(%error, "the soft limit of descriptors stays {from}, and {needed} may be needed");
            return;
        }
        let _ = BEFORE.set(from);
    }
    let connections = need.connections;
    if to < needed {
        tracing::warn!(
            "{connections} connections at once may need {needed} descriptors, and the hard limit is \
             {to}: clients beyond it wait, or are refused; raise it (ulimit -Hn, LimitNOFILE=), or \
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

/// `None` if there is enough.
fn step(limit: Rlimit, need: Need) -> Option<Step> {
    let needed = RESERVE + need.connections + need.besides;
    // Without a value there is no limit.
    let from = limit.current.filter(|&soft| soft < needed)?;
    let to = limit.maximum.map_or(needed, |hard| needed.min(hard));
    Some(Step { from, to, needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_is_needed_and_allowed() {
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
        assert_eq!(step(limit(Some(64), Some(64)), need), to(64), "told");
        assert_eq!(step(limit(Some(1228), Some(1228)), need), None);
        assert_eq!(step(limit(None, None), need), None);
    }
}
