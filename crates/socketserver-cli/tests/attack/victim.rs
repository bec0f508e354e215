//! The server that is attacked, and what it uses.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

use crate::common::{Server, eventually};

/// A concurrency model, and what keeps attackers from taking all of its places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    Threading,
    Forking,
    Pooled,
    Green,
}

pub struct Victim {
    pub server: Server,
    pub address: SocketAddr,
    pub model: Model,
}

/// What has to be the same after an attack as before it.
#[derive(Clone, Debug)]
pub struct Figures {
    pub threads: usize,
    pub descriptors: usize,
    pub children: usize,
    pub resident_kib: usize,
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Threading => "threading",
            Self::Forking => "forking",
            Self::Pooled => "pooled",
            Self::Green => "green",
        }
    }
}

impl Victim {
    /// A line echo with limits that are short enough for a test. Attackers come from other addresses
    /// than visitors, and where places are few, they get a share of them only.
    pub fn start(model: Model, changed: &[[&str; 2]]) -> Self {
        let usual = [
            ["--log-level", "off"],
            ["--first-byte-timeout", "1s"],
            ["--idle-timeout", "1s"],
            ["--min-receive-rate", "10000:1s"],
            ["--write-timeout", "1s"],
            ["--min-send-rate", "1000000:1s"],
            ["--drain-timeout", "5s"],
            [
                "--max-per-peer",
                if model == Model::Forking {
                    "20"
                } else {
                    "2000"
                },
            ],
        ];
        let usual = usual
            .iter()
            .filter(|[flag, _]| !changed.iter().any(|[other, _]| other == flag));
        let mut args = vec!["echo", "--framing", "lines", "-l", "tcp://127.0.0.1:0"];
        args.extend(["-c", model.name()]);
        args.extend(usual.chain(changed).flatten());
        let server = Server::start(&args, 1);
        let address = server.address(0).parse().unwrap();
        Self {
            server,
            address,
            model,
        }
    }

    pub fn figures(&self) -> Figures {
        let pid = self.server.pid();
        let count = |dir: &str| fs::read_dir(format!("/proc/{pid}/{dir}")).unwrap().count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let fields: BTreeMap<_, _> = status.lines().filter_map(|l| l.split_once(':')).collect();
        let resident = fields["VmRSS"].trim().trim_end_matches(" kB");
        Figures {
            threads: count("task"),
            descriptors: count("fd"),
            children: self.children().len(),
            resident_kib: resident.parse().unwrap(),
        }
    }

    pub fn children(&self) -> Vec<u32> {
        let pid = self.server.pid();
        let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let listed = listed.unwrap_or_default();
        listed
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect()
    }

    /// Waits until nothing is left of an attack but memory that the process keeps for the next.
    pub fn recovers(&self, before: &Figures) -> Figures {
        // A pool keeps its threads.
        let kept = if self.model == Model::Pooled { 32 } else { 0 };
        let mut now = self.figures();
        eventually(|| {
            now = self.figures();
            now.threads <= before.threads + kept
                && now.descriptors <= before.descriptors
                && now.children <= before.children
        });
        now
    }
}
