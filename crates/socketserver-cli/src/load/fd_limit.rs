//! The limit of open descriptors, raised to the number of connections.

use std::fs;

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Further descriptors: an epoll set for each thread, and a file that is read occasionally.
const BESIDES: u64 = 8;

/// Raises the soft limit of this process as far as needed and allowed. No code in this process uses
/// select(2), which supports only 1024 descriptors.
pub(super) fn raise_for(connections: u32, threads: u32) -> anyhow::Result<()> {
    let open = fs::read_dir("/proc/self/fd").map_or(16, |all| all.count() as u64);
    let needed = u64::from(connections) + 2 * u64::from(threads) + open + BESIDES;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(maximum) = limit.maximum.filter(|&maximum| maximum < needed) {
        bail!(
            "{connections} connections need {needed} descriptors, and this process may have \
             {maximum}: raise the hard limit (`ulimit -Hn` as root, or LimitNOFILE= of a service), or \
             ask for fewer --connections"
        );
    }
    let raised = Rlimit {
        current: Some(needed),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).with_context(|| {
        format!("cannot raise the limit to the {needed} descriptors that are needed")
    })
}
