//! Room for as many descriptors as there will be connections.

use std::fs;

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For what is opened besides: an epoll set for each thread, a file that is read now and then.
const BESIDES: u64 = 8;

/// Raises this process's limit as far as it may, which harms nobody: what has more than 1024
/// descriptors and uses select(2) is not here.
pub(super) fn make_room_for(connections: u32, threads: u32) -> anyhow::Result<()> {
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
    setrlimit(Resource::Nofile, raised)
        .with_context(|| format!("cannot have the {needed} descriptors that are needed"))
}
