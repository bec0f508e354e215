//! The attacked server and the resources that it uses.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Server, socketserver};

/// The concurrency model of the attacked server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    Sequential,
    Threading,
    Forking,
    Pooled,
    Green,
}

/// The state in which attackers hold a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowd {
    /// The connection waits for its first or next message, and holds no worker of a pool.
    Idle,
    /// The connection is within a message or an answer.
    Active,
}

pub struct Victim {
    pub server: Server,
    pub model: Model,
}

/// The figures that must be the same before and after an attack.
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
            Self::Sequential => "sequential",
            Self::Threading => "threading",
            Self::Forking => "forking",
            Self::Pooled => "pooled",
            Self::Green => "green",
        }
    }
}

impl Victim {
    /// Starts a line echo over TCP with limits that are short enough for a test. Attackers and
    /// visitors have different addresses. If slots are few, the attackers get only a share of the
    /// slots.
    pub fn start(model: Model, crowd: Crowd, changed: &[[&str; 2]]) -> Self {
        let share = match (model, crowd) {
            (Model::Forking, _) | (Model::Pooled, Crowd::Active) => "20",
            _ => "2000",
        };
        let usual = [
            ["--log-level", "off"],
            ["--first-byte-timeout", "500ms"],
            ["--idle-timeout", "2s"],
            ["--min-receive-rate", "10000:500ms"],
            ["--write-timeout", "500ms"],
            ["--min-send-rate", "1000000:500ms"],
            ["--drain-timeout", "5s"],
            ["--max-per-peer", share],
        ];
        let usual = usual
            .iter()
            .filter(|[flag, _]| !changed.iter().any(|[other, _]| other == flag));
        let mut args = vec!["--framing", "lines", "-l", "tcp://127.0.0.1:0"];
        args.extend(usual.chain(changed).flatten());
        Self::with(model, &args)
    }

    /// Starts an echo with these options.
    pub fn with(model: Model, args: &[&str]) -> Self {
        Self::launch(&mut socketserver(), model, args)
    }

    /// Starts another program with these options.
    pub fn serving(program: &str, model: Model, args: &[&str]) -> Self {
        let mut command = socketserver();
        command.args([program, "-c", model.name()]).args(args);
        let server = Server::launch(command.stdin(Stdio::null()), 1);
        Self { server, model }
    }

    /// Starts an echo by a command that executes the program in the same process.
    pub fn launch(command: &mut Command, model: Model, args: &[&str]) -> Self {
        command.args(["echo", "-c", model.name()]).args(args);
        let server = Server::launch(command.stdin(Stdio::null()), 1);
        Self { server, model }
    }

    /// Returns the IP address and port of the server.
    pub fn address(&self) -> SocketAddr {
        self.server.address(0).parse().unwrap()
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

    /// Returns the processor time of the server and its children.
    pub fn processor_time(&self) -> Duration {
        let children = self.children().into_iter().map(processor_time);
        processor_time(self.server.pid()) + children.sum::<Duration>()
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

    /// Waits until the server has released all resources of an attack, except memory that the
    /// process keeps.
    pub fn recovers(&self, before: &Figures) -> Figures {
        // A pool keeps its threads.
        let kept = if self.model == Model::Pooled { 32 } else { 0 };
        let mut now = self.figures();
        let end = Instant::now() + PATIENCE;
        while now.threads > before.threads + kept
            || now.descriptors > before.descriptors
            || now.children > before.children
        {
            assert!(Instant::now() < end, "{before:?} before, {now:?} after");
            std::thread::sleep(Duration::from_millis(2));
            now = self.figures();
        }
        now
    }
}

/// Returns the processor time of a process, its threads and its reaped children, in steps of 10 ms:
/// proc_pid_stat(5). Returns zero for a process that has ended.
pub fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The process name may contain any character. The fields after it begin with the third.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields.split(' ').skip(11).take(4);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
