//! The facts above each table: the machine, the versions, the command.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{Context, ensure};
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};

/// The cores that this process may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// The core that servers are pinned to.
    pub(crate) server: usize,
    /// The core that the load is pinned to: a different one, if the process may use two.
    pub(crate) load: usize,
    count: u32,
}

impl Cores {
    pub(crate) fn detect() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut each = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let server = each.next().context("no core")?;
        Ok(Self {
            server,
            load: each.next().unwrap_or(server),
            count: allowed.count(),
        })
    }
}

/// Raises the descriptor limit of this process and its children to the hard limit. The soft limit
/// is often 1,024.
pub(crate) fn raise_descriptor_limit() -> anyhow::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).context("cannot raise the descriptor limit (RLIMIT_NOFILE)")
}

/// Returns an error that says what to do if the descriptor limit is below `needed`.
pub(crate) fn ensure_descriptors(needed: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile).current;
    ensure!(
        limit.is_none_or(|limit| limit >= needed),
        "the descriptor limit is {}, but {needed} are needed: raise the hard limit, for example \
         with `prlimit --nofile={needed}`",
        limit.unwrap_or(0)
    );
    Ok(())
}

/// The TCP congestion control of both sides: Linux's default, whatever the default of this machine
/// is. BBR and others that pace their output would measure their own timers on a loopback.
const CONGESTION_CONTROL: &str = "cubic";

/// Sets the congestion control of a socket, or of the sockets accepted from a listener. Where the
/// kernel lacks it, all sockets keep the system's default.
pub(crate) fn set_congestion_control(socket: impl AsFd) {
    let _ = sockopt::set_tcp_congestion(socket, CONGESTION_CONTROL);
}

fn congestion_control() -> anyhow::Result<String> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let default = sockopt::tcp_congestion(&socket)?;
    set_congestion_control(&socket);
    let chosen = sockopt::tcp_congestion(&socket)?;
    Ok(format!(
        "TCP with {chosen} (the system's default is {default})"
    ))
}

/// Returns kernel, processor, cores, versions and command line, one fact per item.
pub(crate) fn describe(cores: Cores) -> anyhow::Result<Vec<String>> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split(": ").nth(1))
        .unwrap_or("an unnamed processor");
    let build = if cfg!(debug_assertions) {
        "a debug build: the figures are meaningless"
    } else {
        "a release build"
    };
    let packages = [
        "socketserver",
        "greenroom",
        "tokio",
        "actix-server",
        "monoio",
        "may",
        "hyper",
    ];
    let packages = packages.map(|name| {
        let version = version_in(include_str!("../../Cargo.lock"), name).unwrap_or("?");
        format!("{name} {version}")
    });
    let packages = packages
        .into_iter()
        .chain(crate::contenders::external_versions());
    // Figures are worth little if the machine was busy with other work.
    let load_average = fs::read_to_string("/proc/loadavg")?;
    let load_average = load_average.split_whitespace().next().unwrap_or("?");
    let words: Vec<_> = std::env::args().skip(1).collect();
    let Cores {
        server,
        load,
        count,
    } = cores;
    Ok(vec![
        format!("Linux {}, {model}, {count} cores", kernel.trim()),
        format!("server on core {server}, load on core {load}"),
        format!("load average before the start: {load_average}"),
        format!("{}, {build}", env!("COMPILER")),
        packages.collect::<Vec<_>>().join(", "),
        congestion_control()?,
        format!("bench {}", words.join(" ")),
    ])
}

fn version_in<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, after) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    after.split_once('"').map(|(version, _)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_lock_file() {
        let lock = "[[package]]\nname = \"ab\"\nversion = \"1.2.3\"\n\n[[package]]\nname = \"b\"\n\
                    version = \"4.5.6\"\n";
        assert_eq!(version_in(lock, "b"), Some("4.5.6"));
        assert_eq!(version_in(lock, "c"), None);
        let own = version_in(include_str!("../../Cargo.lock"), "bench");
        assert_eq!(own, Some(env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn description_names_the_kernel_and_the_peers() {
        let text = describe(Cores::detect().unwrap()).unwrap().join("\n");
        for part in ["Linux ", "rustc ", "tokio 1.", "TCP with "] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }
}
